"use strict";
// Opens the page: reads the index, follows the address, and opens episodes.

(() => {
  const $ = (id) => document.getElementById(id);
  const narrow = matchMedia("(max-width: 60rem)");
  let asked = 0; // number of the episode that is asked for last; an earlier one is not drawn

  viewer.index = null;
  viewer.rows = [];
  viewer.current = null; // {row, said, episode, turn, against}

  viewer.fail = (problem) => {
    $("problem").hidden = false;
    $("problem").textContent = viewer.visible(problem);
  };

  // The address of a step, with the episode beside it.
  viewer.addressOf = (said, turn) => {
    const against = viewer.current?.against;
    const beside = against ? `/with/${[against.run, against.arm, against.checkpoint].map(encodeURIComponent).join("/")}` : "";
    return viewer.address(said, turn) + beside;
  };

  viewer.remember = (address) => {
    if (location.hash !== address) history.replaceState(null, "", address);
  };

  const parse = (address) => {
    try {
      const parts = address.replace(/^#/, "").split("/").map(decodeURIComponent);
      if (parts.length < 6) return null;
      const [run, arm, checkpoint, driver, game, sample, turn, word, ...beside] = parts;
      const against = word === "with" && beside.length === 3 ? { run: beside[0], arm: beside[1], checkpoint: Number(beside[2]) } : null;
      return { run, arm, checkpoint: Number(checkpoint), driver, game, sample: Number(sample), turn: Number(turn) || 0, against };
    } catch {
      return null; // not an address of ours
    }
  };

  const rowOf = (wanted) => {
    const { columns, tables } = viewer.index;
    const places = ["run", "arm", "driver", "game"].map((name) => [columns[name], tables[name].indexOf(wanted[name])]);
    for (let row = 0; row < columns.run.length; row++) {
      if (columns.checkpoint[row] !== wanted.checkpoint || columns.sample[row] !== wanted.sample) continue;
      if (places.every(([column, value]) => column[row] === value)) return row;
    }
    return -1;
  };

  // Open an episode at a step. `wanted`: the arm and checkpoint that it is compared with; as before
  // where it is left out. `leave`: on a narrow screen, close the list.
  viewer.open = async (row, turn = 0, { wanted, leave = false, focus = true } = {}) => {
    const number = (asked += 1);
    const said = viewer.about(row);
    const beside = wanted === undefined ? viewer.current?.against : wanted;
    const other = beside ? viewer.counterpart(said, beside) : null;
    try {
      const [episode, compared] = await Promise.all([viewer.episode(row), other ? viewer.episode(other.row) : null]);
      if (number !== asked) return;
      viewer.current = { row, said, episode, turn, against: other ? { ...other, episode: compared } : null };
      if (leave && narrow.matches) $("panel").open = false;
      viewer.drawEpisode();
      viewer.drawList(true);
      if (turn > 0 || (leave && narrow.matches)) viewer.showStep(turn, focus);
      else {
        viewer.showStep(0, false);
        if (!narrow.matches) $("episode").scrollIntoView({ block: "nearest" });
        scrollTo(0, 0);
      }
    } catch (error) {
      viewer.fail(error.message);
    }
  };

  viewer.compare = async (said) => {
    const { row, turn } = viewer.current;
    await viewer.open(row, turn, { wanted: said });
    $("compare")?.focus();
  };

  viewer.shadeBy = (name) => {
    viewer.shade = name;
    if (!viewer.current) return;
    const { turn } = viewer.current;
    const top = document.getElementById(`step-${turn}`)?.getBoundingClientRect().top;
    const focused = document.activeElement?.id;
    viewer.drawEpisode();
    viewer.showStep(turn, false);
    if (focused === "shade") $("shade").focus({ preventScroll: true });
    const now = document.getElementById(`step-${turn}`)?.getBoundingClientRect().top;
    if (top !== undefined && now !== undefined) scrollBy(0, now - top);
  };

  // Open what the address names; the first episode of the list where it names none.
  const follow = async (first) => {
    const wanted = parse(location.hash);
    const row = wanted ? rowOf(wanted) : -1;
    if (row >= 0) await viewer.open(row, wanted.turn, { wanted: wanted.against });
    else if (first && viewer.rows.length) await viewer.open(viewer.rows[0], 0, { focus: false });
    else if (wanted) viewer.fail("No episode has this address.");
  };

  const drawTitle = () => {
    const { runs } = viewer.index;
    const title = runs.map((run) => run.title).join(" and ");
    $("title").replaceChildren("Episodes of ", viewer.text(title));
    document.title = viewer.visible(`Episodes of ${title}`);
    for (const run of runs.filter((each) => each.report)) {
      $("reports").append(viewer.el("a", { href: run.report }, "Report"));
    }
  };

  viewer.start = async (index) => {
    viewer.index = index;
    viewer.prepare();
    for (const [probe, words] of Object.entries(viewer.SHARED)) {
      if (index.probes.includes(probe)) viewer.SHADES[probe] = words;
    }
    drawTitle();
    viewer.drawControls();
    viewer.listen();
    viewer.listenKeys();
    viewer.chooseAgain();
    const widen = () => {
      $("panel").open = !narrow.matches;
    };
    narrow.addEventListener("change", widen);
    // On a narrow screen a link leads to the episode; without one, the list comes first.
    $("panel").open = !narrow.matches || !parse(location.hash);
    addEventListener("hashchange", () => follow(false));
    document.documentElement.dataset.listed = String(Math.round(performance.now()));
    await follow(true);
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  };

  addEventListener("load", () => {
    setTimeout(() => {
      if (!viewer.index && $("problem").hidden && typeof DecompressionStream === "undefined") {
        viewer.fail("This browser cannot read compressed data; use a newer one.");
      }
    }, 0);
  });
})();
