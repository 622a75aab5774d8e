"use strict";
// An episode, step by step; alone, or beside another one of the same game.

(() => {
  const { el, text, block } = viewer;
  const main = () => document.getElementById("episode");

  const place = (said) => `${said.label}${many("trained") ? `, seed ${said.trained}` : ""}, step ${said.checkpoint}`;
  const many = (facet) => viewer.facets[facet].values.length > 1;
  const fullPlace = (said) => (many("run") ? `${said.run}: ${place(said)}` : place(said));

  // The rows that an episode can be compared with: the same game, driver and sample elsewhere.
  const counterparts = (said) => {
    const found = [];
    for (let row = 0; row < viewer.index.columns.run.length; row++) {
      if (row === said.row) continue;
      const { game, driver, sample } = viewer.index.columns;
      if (game[row] === game[said.row] && driver[row] === driver[said.row] && sample[row] === sample[said.row]) {
        found.push(viewer.about(row));
      }
    }
    return found;
  };

  // The row of an arm and checkpoint among those that an episode can be compared with.
  viewer.counterpart = (said, wanted) =>
    counterparts(said).find(
      (each) => each.run === wanted.run && each.arm === wanted.arm && each.checkpoint === wanted.checkpoint,
    ) ?? null;

  const comparing = (said) => {
    const { against } = viewer.current;
    const options = counterparts(said).map((each) =>
      el("option", { value: each.row, selected: each.row === against?.row }, fullPlace(each)),
    );
    if (!options.length) return null;
    return el(
      "label",
      { class: "field" },
      el("span", {}, "Compare with"),
      el(
        "select",
        {
          id: "compare",
          on: {
            change: (event) => {
              const row = Number(event.target.value);
              viewer.compare(row < 0 ? null : viewer.about(row));
            },
          },
        },
        el("option", { value: -1 }, "nothing"),
        options,
      ),
    );
  };

  const shading = () =>
    el(
      "label",
      { class: "field" },
      el("span", {}, "Shade tokens by"),
      el(
        "select",
        { id: "shade", on: { change: (event) => viewer.shadeBy(event.target.value) } },
        Object.entries(viewer.SHADES).map(([name, words]) => el("option", { value: name, selected: name === viewer.shade }, words)),
      ),
    );

  const facts = (said, episode) => {
    const elicitation = viewer.index.elicitations[said.elicitation];
    const rows = [
      ["drawn with", `seed ${said.seed}, sample ${said.sample}`],
      ["hash of the checkpoint", episode.checkpoint_hash],
      ...Object.entries(elicitation).map(([name, value]) => [viewer.index.elicitation_fields[name] ?? name, value]),
    ];
    const shown = (value) => (value === null ? "none" : value === "" ? "(empty)" : typeof value === "object" ? JSON.stringify(value) : String(value));
    return el(
      "details",
      { class: "part" },
      el("summary", {}, "How it was played"),
      el(
        "table",
        { class: "facts" },
        el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, text(name)), el("td", {}, block(shown(value), "value"))))),
      ),
    );
  };

  const promptPart = (episode) =>
    episode.prompt
      ? el("details", { class: "part" }, el("summary", {}, "The first prompt, as the model read it"), text(episode.prompt, { class: "block code" }))
      : null;

  const heading = (said, episode) =>
    el(
      "div",
      { class: "heading" },
      el("h2", { id: "game" }, text(said.game), " ", viewer.outcome(said)),
      el(
        "p",
        { class: "soft" },
        text(fullPlace(said)),
        " · ",
        text(viewer.index.drivers[said.driver] ?? said.driver),
        " · ",
        text(viewer.index.domains[said.domain]),
        " · ",
        text(said.task_type),
        ` · sample ${said.sample}`,
      ),
      el("p", { class: "task" }, el("span", { class: "soft" }, "Task "), text(episode.task || "(the game could not be started)")),
      episode.env_error ? el("p", { class: "error" }, "Environment error: ", text(episode.env_error)) : null,
      episode.env_faults.length && !episode.env_error
        ? el("p", { class: "soft" }, `Faults of the environment that were retried: ${episode.env_faults.length}`)
        : null,
    );

  const answer = (episode, number) => {
    const step = episode.steps[number];
    const next = episode.steps[number + 1]?.observation ?? episode.final;
    const word = { true: ["won", "accepted"], false: ["mark-not_accepted", "not accepted"], null: ["broken", "no answer"] }[step.accepted];
    const score = step.score === null ? "" : ` score ${viewer.number(step.score)}`;
    const sent = step.executed ? text(step.executed, { class: "action" }) : el("span", { class: "soft" }, "nothing");
    const answered = next === null || next === undefined ? [] : [el("dt", {}, "Answer"), el("dd", {}, block(next, "answer"))];
    return el(
      "dl",
      { class: "actions answer" },
      el("dt", {}, "Sent"),
      el("dd", {}, sent, " ", el("span", { class: `pill ${word[0]}` }, word[1]), score),
      answered,
    );
  };

  const seen = (step) =>
    el("dl", { class: "actions" }, el("dt", {}, "Observation"), el("dd", {}, block(step.observation, "observation")));

  const side = (said, episode, number, against, alone) => {
    const step = episode.steps[number];
    if (!step) return el("div", { class: "side" }, el("p", { class: "soft" }, `${fullPlace(said)}: the episode is over.`));
    return el(
      "div",
      { class: "side" },
      alone ? null : el("h4", {}, text(fullPlace(said)), " ", viewer.markPills(step.marks)),
      viewer.actions(step, said, episode.pieces, against),
      answer(episode, number),
      viewer.parts(step, episode.pieces),
    );
  };

  // Whether two episodes are in the same state at a step: all before it was the same.
  const sameState = (one, other, number) => {
    for (let at = 0; at <= number; at++) {
      const [a, b] = [one.steps[at], other.steps[at]];
      if (!a || !b || a.observation !== b.observation) return false;
      if (at < number && a.executed !== b.executed) return false;
    }
    return true;
  };

  const drawStep = (number, total, sides) => {
    const [first, second] = sides;
    const together = !second || sameState(first.episode, second.episode, number);
    const observed = together ? [seen(first.episode.steps[number])] : [];
    const bodies = sides.map((each, which) => {
      const other = sides[1 - which];
      const body = side(each.said, each.episode, number, together ? other?.episode.steps[number] : null, !second);
      const step = each.episode.steps[number];
      if (!together && step) body.querySelector("h4").after(seen(step));
      return body;
    });
    const marks = second ? [] : viewer.markPills(first.episode.steps[number].marks);
    const parted = second && !together && sameState(first.episode, second.episode, number - 1);
    return el(
      "li",
      { class: "step", id: `step-${number}`, tabindex: -1, "aria-label": `Step ${number + 1} of ${total}` },
      el(
        "h3",
        {},
        `Step ${number + 1} of ${total} `,
        marks,
        parted ? el("span", { class: "pill differs" }, "the episodes part here") : null,
        el("a", { class: "link", href: viewer.addressOf(first.said, number), "aria-label": `Link to step ${number + 1}` }, "link"),
      ),
      observed,
      el("div", { class: second ? "sides two" : "sides" }, bodies),
    );
  };

  // Draw the open episode, with the one that it is compared with.
  viewer.drawEpisode = () => {
    const { said, episode, against } = viewer.current;
    const sides = [{ said, episode }];
    if (against) sides.push({ said: against, episode: against.episode });
    const total = Math.max(...sides.map((each) => each.episode.steps.length));
    const steps = Array.from({ length: total }, (_, number) => drawStep(number, total, sides));
    main().replaceChildren(
      heading(said, episode),
      el(
        "div",
        { class: "toolbar" },
        el("button", { type: "button", on: { click: () => viewer.moveEpisode(-1) } }, "Previous episode"),
        el("button", { type: "button", on: { click: () => viewer.moveEpisode(1) } }, "Next episode"),
        comparing(said),
        shading(),
      ),
      facts(said, episode),
      promptPart(episode) ?? "",
      total ? el("ol", { class: "steps" }, steps) : el("p", { class: "soft" }, "No step was played."),
    );
  };

  // Choose a step: mark it, and bring it into sight.
  viewer.showStep = (number, focus = true) => {
    const { episode, said } = viewer.current;
    const total = episode.steps.length;
    const wanted = Math.min(Math.max(0, number), Math.max(0, total - 1));
    viewer.current.turn = wanted;
    document.querySelector(".step.chosen")?.classList.remove("chosen");
    const step = document.getElementById(`step-${wanted}`);
    if (step) {
      step.classList.add("chosen");
      if (focus) {
        step.focus({ preventScroll: true });
        step.scrollIntoView({ block: "start" });
      }
    }
    viewer.remember(viewer.addressOf(said, wanted));
  };
})();
