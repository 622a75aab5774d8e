"use strict";
// The fields that choose episodes.

(() => {
  const $ = (id) => document.getElementById(id);
  let search = 0; // number of the search that counts; a later one ends an earlier one

  const drawSelects = () => {
    const { facets } = viewer.choice;
    for (const [name, title] of Object.entries(viewer.FACETS)) {
      const { names, of } = viewer.facets[name];
      const select = $(`facet-${name}`);
      if (!select) continue;
      const counts = new Int32Array(names.length);
      for (const row of viewer.matching(name)) counts[of[row]] += 1;
      const options = [viewer.el("option", { value: -1 }, `all`)];
      names.forEach((text, place) => {
        if (counts[place] || facets[name] === place) {
          options.push(viewer.el("option", { value: place }, `${text} (${viewer.count(counts[place])})`));
        }
      });
      select.replaceChildren(...options);
      select.value = String(facets[name] ?? -1);
      select.setAttribute("aria-label", title);
    }
  };

  const drawMarks = () => {
    const rows = viewer.matching();
    const counts = new Map();
    for (const row of rows) {
      for (const mark of viewer.marksOf(row)) counts.set(mark, (counts.get(mark) ?? 0) + 1);
    }
    for (const mark of viewer.marksThere) {
      $(`mark-${mark}`).checked = viewer.choice.marks.has(mark);
      $(`count-${mark}`).textContent = viewer.count(counts.get(mark) ?? 0);
    }
  };

  const summarize = () => {
    const total = viewer.index.columns.run.length;
    const text = `${viewer.count(viewer.rows.length)} of ${viewer.count(total)} episodes`;
    $("count").textContent = text;
    $("panel-summary").textContent = `Choose an episode (${text})`;
  };

  // Draw all that depends on what is chosen.
  viewer.chooseAgain = () => {
    viewer.rows = viewer.matching();
    drawSelects();
    drawMarks();
    summarize();
    viewer.drawList(true);
  };

  const searched = async (query) => {
    const number = (search += 1);
    $("query-note").textContent = "Searching all texts …";
    try {
      const hits = await viewer.searchTexts(query, (done, all) => {
        if (number === search) $("query-note").textContent = `Searching all texts: ${done} of ${all} files`;
        return number === search;
      });
      if (hits === null) return;
      viewer.choice.hits = hits;
      $("query-note").textContent = `${viewer.count(hits.size)} episodes have it in a text`;
      viewer.chooseAgain();
      if (viewer.rows.length) viewer.open(viewer.rows[0], hits.get(viewer.rows[0]));
    } catch (error) {
      viewer.fail(error.message);
    }
  };

  const typed = () => {
    search += 1;
    viewer.choice.hits = null;
    viewer.choice.query = $("query").value.trim().toLowerCase();
    $("query-note").textContent = viewer.choice.query ? "In games and tasks; Enter searches all texts" : "";
    viewer.chooseAgain();
  };

  viewer.drawControls = () => {
    const selects = Object.entries(viewer.FACETS)
      .filter(([name]) => viewer.facets[name].values.length > 1)
      .map(([name, title]) =>
        viewer.el(
          "label",
          { class: "field" },
          viewer.el("span", {}, title),
          viewer.el("select", {
            id: `facet-${name}`,
            on: {
              change: (event) => {
                viewer.choice.facets[name] = Number(event.target.value);
                viewer.chooseAgain();
              },
            },
          }),
        ),
      );
    $("selects").replaceChildren(...selects);
    const legend = $("marks").querySelector("legend");
    const marks = viewer.marksThere.map((mark) =>
      viewer.el(
        "label",
        { class: "chip", title: viewer.EXPLAINED[mark] },
        viewer.el("input", {
          type: "checkbox",
          id: `mark-${mark}`,
          on: {
            change: (event) => {
              viewer.choice.marks[event.target.checked ? "add" : "delete"](mark);
              viewer.chooseAgain();
            },
          },
        }),
        ` ${viewer.MARKS[mark]} `,
        viewer.el("span", { id: `count-${mark}`, class: "soft" }),
      ),
    );
    $("marks").replaceChildren(legend, ...marks);
    $("query").addEventListener("input", typed);
    $("controls").addEventListener("submit", (event) => {
      event.preventDefault();
      const query = $("query").value.trim().toLowerCase();
      if (query) searched(query);
    });
    $("clear").addEventListener("click", () => {
      viewer.choice.facets = {};
      viewer.choice.marks.clear();
      $("query").value = "";
      typed();
    });
  };
})();
