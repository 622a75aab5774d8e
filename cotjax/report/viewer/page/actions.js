"use strict";
// What the model did at one step: its thought and actions, and what is known of them.

(() => {
  const { el, text, block } = viewer;
  const FREE = { cot: "CoT action", prompt: "Prompt action", instructed: "Told not to reason" };
  const CHOSEN = {
    cot_constrained: "CoT action, among the admissible",
    prompt_constrained: "Prompt action, among the admissible",
  };
  const SHORT = { cot_constrained: "after reasoning", prompt_constrained: "after the prompt" };
  const MARK_NAMES = { not_accepted: "not accepted", judged_helpful: "judged helpful", judged_harmful: "judged harmful" };

  const same = (one, other) => (one ?? "").split(/\s+/).join(" ").trim() === (other ?? "").split(/\s+/).join(" ").trim();
  const pill = (name, words) => el("span", { class: `pill ${name}` }, words);

  viewer.markPills = (marks) => marks.map((mark) => pill(`mark-${mark}`, MARK_NAMES[mark] ?? mark));

  const action = (kind, title, given, step, said, against) => {
    const there = given.action !== null && given.action !== undefined;
    const notes = [];
    if (given.valid === false) notes.push(pill("mark-invalid", `invalid: ${given.problem ?? "no action"}`));
    if (there && given.valid !== false && step.reference !== null && same(given.action, step.reference)) {
      notes.push(pill("won", "the expert's"));
    }
    if (there && given.valid !== false && given.admissible === false) notes.push(pill("lost", "not admissible"));
    if (kind === said.driver && given.valid !== false) notes.push(pill("states", "executed"));
    if (against && !same(against.action, given.action)) notes.push(pill("differs", "differs"));
    if (given.logprob !== null && given.logprob !== undefined) {
      const limit = given.stopped === false ? ", the limit" : "";
      notes.push(el("span", { class: "soft" }, `log p ${viewer.number(given.logprob)}, ${given.length} tokens${limit}`));
    }
    let shown = there ? text(given.action, { class: "action" }) : el("span", { class: "soft" }, "none");
    if (!there && given.text) shown = block(given.text, "response");
    if (!there && given.raw) shown = block(given.raw, "response");
    return [el("dt", { class: `kind-${kind}` }, title), el("dd", {}, shown, " ", notes.flatMap((each) => [each, " "]))];
  };

  // Thought and actions; `against`: the same step of the episode that it is compared with.
  viewer.actions = (step, said, pieces, against) => {
    const rows = [];
    const { cot } = step.actions;
    if (cot) {
      const thought = (cot.thought ?? "").trim();
      rows.push(
        el("dt", {}, "Thought"),
        el("dd", {}, thought ? block(thought, "thought") : el("span", { class: "soft" }, "none")),
      );
    }
    for (const [kind, title] of [...Object.entries(FREE), ...Object.entries(CHOSEN)]) {
      const given = step.actions[kind];
      if (!given) continue;
      const raw = given.tokens ? given.tokens.map((piece) => pieces[piece]).join("") : "";
      rows.push(...action(kind, title, { ...given, raw }, step, said, against?.actions[kind]));
    }
    if (step.reference !== null) {
      const notes = said.driver === "reference" ? [" ", pill("states", "executed")] : [];
      rows.push(el("dt", {}, "Expert's action"), el("dd", {}, text(step.reference, { class: "action" }), notes));
    }
    return el("dl", { class: "actions" }, rows);
  };

  // A fold whose content is made when it is first opened.
  const lazily = (title, make, open = false) => {
    const fold = el("details", { class: "part" }, el("summary", {}, title));
    const fill = () => {
      if (fold.open && fold.children.length === 1) fold.append(make());
    };
    fold.addEventListener("toggle", fill);
    if (open) {
      fold.open = true;
      fill();
    }
    return fold;
  };

  const shares = (logprobs) => {
    const most = Math.max(...logprobs);
    const weights = logprobs.map((value) => Math.exp(value - most));
    const sum = weights.reduce((total, each) => total + each, 0);
    return weights.map((each) => each / sum);
  };

  const likelihoods = (step) => {
    const kinds = Object.keys(SHORT).filter((kind) => step.actions[kind]?.logprobs?.length);
    const byKind = Object.fromEntries(kinds.map((kind) => [kind, shares(step.actions[kind].logprobs)]));
    const first = kinds.at(-1);
    const places = step.admissible.map((_, place) => place);
    if (first) places.sort((a, b) => byKind[first][b] - byKind[first][a]);
    const cells = (kind, place) => {
      const { logprobs, lengths } = step.actions[kind];
      const bar = el("span", { class: "bar" });
      bar.style.width = `${Math.max(1, Math.round(100 * byKind[kind][place]))}%`;
      return [
        el("td", { class: "share" }, bar, `${(100 * byKind[kind][place]).toFixed(0)} %`),
        el("td", {}, viewer.number(logprobs[place])),
        el("td", {}, viewer.number(logprobs[place] / Math.max(1, lengths[place]))),
      ];
    };
    const notes = (command) => [
      same(command, step.executed) ? pill("states", "executed") : null,
      step.reference !== null && same(command, step.reference) ? pill("won", "the expert's") : null,
      ...kinds.filter((kind) => same(command, step.actions[kind].action)).map((kind) => pill("chosen", `chosen ${SHORT[kind]}`)),
    ];
    const groups = kinds.map((kind) => el("th", { scope: "colgroup", colspan: 3 }, SHORT[kind]));
    const heads = kinds.flatMap(() => ["share", "log p", "per token"].map((head) => el("th", { scope: "col" }, head)));
    return el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Admissible actions" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          kinds.length ? el("tr", {}, el("td", {}), groups) : null,
          el("tr", {}, el("th", { scope: "col" }, "action"), heads),
        ),
        el(
          "tbody",
          {},
          places.map((place) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, text(step.admissible[place]), " ", notes(step.admissible[place])),
              kinds.flatMap((kind) => cells(kind, place)),
            ),
          ),
        ),
      ),
    );
  };

  const tokens = (step, pieces) => {
    const shown = Object.entries(FREE).filter(([kind]) => step.actions[kind]?.tokens);
    return el(
      "div",
      {},
      el("p", { class: "note" }, viewer.shadeLegend()),
      shown.map(([kind, title]) => viewer.tokens(title.replace(" action", " response"), kind, step.actions[kind], pieces, step.probes)),
    );
  };

  const flat = (value, name = "") => {
    if (value === null || typeof value !== "object") return [[name, value]];
    return Object.entries(value).flatMap(([key, each]) => flat(each, name ? `${name}.${key}` : key));
  };
  const plain = (value) =>
    typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value ?? "none");

  const probes = (step) =>
    el(
      "div",
      {},
      Object.entries(step.probes).flatMap(([name, fields]) => [
        ...viewer.shareBars(name, fields),
        el(
          "table",
          { class: "facts" },
          el("caption", {}, text(name)),
          el("tbody", {}, flat(fields).map(([field, value]) => el("tr", {}, el("th", { scope: "row" }, text(field)), el("td", {}, block(plain(value), "value"))))),
        ),
      ]),
    );

  // The folds of a step: likelihoods, tokens, what probes measured.
  viewer.parts = (step, pieces) => {
    const parts = [];
    if (step.admissible !== null) {
      const title = `Admissible actions: ${step.admissible.length}`;
      const scored = Object.keys(SHORT).some((kind) => step.actions[kind]?.logprobs?.length);
      parts.push(lazily(scored ? `${title}, with likelihoods` : title, () => likelihoods(step)));
    }
    if (Object.keys(FREE).some((kind) => step.actions[kind]?.tokens)) {
      parts.push(lazily("Tokens: roles, loss weights, log-probabilities", () => tokens(step, pieces), viewer.shade !== "none"));
    }
    const measured = Object.keys(step.probes);
    if (measured.length) parts.push(lazily(`Probes: ${measured.join(", ")}`, () => probes(step)));
    return parts;
  };
})();
