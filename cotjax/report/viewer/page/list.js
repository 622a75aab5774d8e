"use strict";
// The list of episodes. Only the rows in sight are in the document.

(() => {
  const $ = (id) => document.getElementById(id);
  const HEIGHT = 58; // pixels of a row, as in viewer.css
  const AROUND = 6; // rows drawn above and below those in sight
  let active = 0; // place in viewer.rows

  const outcome = (said) => {
    if (said.driver === "reference") return ["states", `${said.steps} states`];
    if (said.ended === "env_error") return ["broken", "env error"];
    return said.ended === "won" ? ["won", "won"] : ["lost", "failed"];
  };
  viewer.outcome = (said) => {
    const [name, text] = outcome(said);
    return viewer.el("span", { class: `pill ${name}` }, text);
  };

  const rowOf = (place) => {
    const said = viewer.about(viewer.rows[place]);
    const shown = new Set(["revised", "helpful", "harmful", "judged_helpful", "judged_harmful", "invalid"]);
    const marks = viewer.marksOf(said.row).filter((mark) => shown.has(mark));
    const where = [viewer.index.domains[said.domain], `${said.label}, step ${said.checkpoint}`, said.driver];
    if (viewer.facets.trained.values.length > 1) where.splice(2, 0, `seed ${said.trained}`);
    const row = viewer.el(
      "div",
      {
        role: "option",
        id: `option-${place}`,
        class: "row",
        "aria-selected": String(said.row === viewer.current?.row),
        "aria-setsize": viewer.rows.length,
        "aria-posinset": place + 1,
        on: { click: () => choose(place, true) },
      },
      viewer.el("span", { class: "first" }, viewer.text(said.game, { class: "game" }), outcomeOf(said)),
      viewer.el(
        "span",
        { class: "second" },
        viewer.text(where.join(" · ")),
        marks.length ? viewer.el("span", { class: "row-marks" }, ` ${marks.map((mark) => viewer.MARKS[mark]).join(", ")}`) : null,
      ),
    );
    row.style.top = `${place * HEIGHT}px`;
    return row;
  };
  const outcomeOf = (said) => viewer.outcome(said);

  const draw = () => {
    const list = $("list");
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - AROUND);
    const last = Math.min(viewer.rows.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + AROUND);
    const rows = [];
    for (let place = first; place < last; place++) rows.push(rowOf(place));
    $("rows").style.height = `${viewer.rows.length * HEIGHT}px`;
    $("rows").replaceChildren(...rows);
    list.setAttribute("aria-activedescendant", viewer.rows.length ? `option-${active}` : "");
  };

  const show = (place) => {
    const list = $("list");
    const top = place * HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
  };

  const choose = (place, leave = false) => {
    if (place < 0 || place >= viewer.rows.length) return;
    active = place;
    const row = viewer.rows[place];
    viewer.open(row, viewer.choice.hits?.get(row) ?? 0, { leave });
  };

  // Draw the list; `again`: the rows are others, or another episode is open.
  viewer.drawList = (again = false) => {
    if (again) {
      const place = viewer.current ? viewer.rows.indexOf(viewer.current.row) : -1;
      active = Math.max(0, place);
      show(active);
    }
    draw();
  };

  // Open the next episode of the list, or the previous one.
  viewer.moveEpisode = (by) => {
    const place = viewer.current ? viewer.rows.indexOf(viewer.current.row) : -1;
    choose(place < 0 ? 0 : place + by);
  };

  viewer.listen = () => {
    const list = $("list");
    let asked = false;
    list.addEventListener("scroll", () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        draw();
      });
    });
    new ResizeObserver(draw).observe(list);
    list.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(list.clientHeight / HEIGHT) - 1);
      const last = viewer.rows.length - 1;
      const to = {
        ArrowDown: active + 1,
        ArrowUp: active - 1,
        PageDown: Math.min(last, active + page),
        PageUp: Math.max(0, active - page),
        Home: 0,
        End: last,
        Enter: active,
      }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      choose(to, event.key === "Enter");
    });
  };
})();
