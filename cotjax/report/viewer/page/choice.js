"use strict";
// Which episodes are chosen: by what they are of, what happens in them, and what is searched for.

(() => {
  const FACETS = {
    run: "Run",
    label: "Arm",
    checkpoint: "Checkpoint",
    trained: "Seed",
    domain: "Domain",
    driver: "Driver",
    task_type: "Task type",
    game: "Game",
    sample: "Sample",
  };
  const MARKS = {
    revised: "revised",
    helpful: "helpful",
    harmful: "harmful",
    judged_helpful: "judged helpful",
    judged_harmful: "judged harmful",
    invalid: "invalid",
    not_accepted: "not accepted",
    won: "won",
    failed: "failed",
    env_error: "env error",
  };
  const EXPLAINED = {
    revised: "CoT action and prompt action are both valid, and differ",
    helpful: "a revision to the expert's action",
    harmful: "a revision away from the expert's action",
    judged_helpful: "the environment's own judge prefers the CoT action",
    judged_harmful: "the environment's own judge prefers the prompt action",
    invalid: "a response without a valid action",
    not_accepted: "the environment did not carry an action out",
    won: "the game was won",
    failed: "played to an end without winning",
    env_error: "the environment broke the episode",
  };
  viewer.FACETS = FACETS;
  viewer.MARKS = MARKS;
  viewer.EXPLAINED = EXPLAINED;
  viewer.choice = { facets: {}, marks: new Set(), query: "", hits: null };
  viewer.facets = {}; // name -> {names, of}: `of[row]` is the place of its value in `names`

  const order = new Intl.Collator("en", { numeric: true }).compare;
  let bits = null; // row -> bits of MARKS
  let texts = null; // row -> game and task in lower case

  viewer.prepare = () => {
    const count = viewer.index.columns.run.length;
    const rows = Array.from({ length: count }, (_, row) => viewer.about(row));
    const names = { domain: viewer.index.domains, driver: viewer.index.drivers };
    for (const facet of Object.keys(FACETS)) {
      const values = [...new Set(rows.map((said) => said[facet]))];
      values.sort((a, b) => (typeof a === "number" ? a - b : order(a, b)));
      const places = new Map(values.map((value, place) => [value, place]));
      viewer.facets[facet] = {
        values,
        names: values.map((value) => String(names[facet]?.[value] ?? value)),
        of: Int32Array.from(rows, (said) => places.get(said[facet])),
      };
    }
    const all = Object.keys(MARKS);
    bits = Int32Array.from(rows, (said) => {
      const played = said.driver !== "reference" && said.ended !== "env_error";
      const held = new Set(viewer.index.marks.filter((_, bit) => (said.marks >> bit) & 1));
      if (played) held.add(said.ended === "won" ? "won" : "failed");
      if (said.ended === "env_error") held.add("env_error");
      return all.reduce((sum, mark, bit) => sum | (held.has(mark) ? 1 << bit : 0), 0);
    });
    texts = rows.map((said) => `${said.game}\n${said.task}`.toLowerCase());
    viewer.marksOf = (row) => all.filter((_, bit) => (bits[row] >> bit) & 1);
    viewer.marksThere = all.filter((_, bit) => bits.some((each) => (each >> bit) & 1));
  };

  // The rows that match all that is chosen, but for one facet.
  viewer.matching = (except = null) => {
    const { facets, marks, query, hits } = viewer.choice;
    const wanted = Object.entries(facets)
      .filter(([name, place]) => name !== except && place >= 0)
      .map(([name, place]) => [viewer.facets[name].of, place]);
    const all = Object.keys(MARKS);
    const needed = [...marks].reduce((sum, mark) => sum | (1 << all.indexOf(mark)), 0);
    const found = [];
    for (let row = 0; row < bits.length; row++) {
      if ((bits[row] & needed) !== needed) continue;
      if (wanted.some(([of, place]) => of[row] !== place)) continue;
      if (hits ? !hits.has(row) : query && !texts[row].includes(query)) continue;
      found.push(row);
    }
    return found;
  };

  const holds = (episode, query) => {
    const texts = (step) => [
      step.observation,
      step.executed,
      step.reference,
      ...Object.values(step.actions).flatMap((each) => [each.thought, each.action, each.text]),
    ];
    const has = (text) => text !== null && text !== undefined && text.toLowerCase().includes(query);
    const step = episode.steps.findIndex((each) => texts(each).some(has));
    if (step >= 0) return step;
    return has(episode.task) || has(episode.final) || has(episode.env_error) ? 0 : -1;
  };

  // Search every text of the episodes that match otherwise; `told(done, chunks)` after each chunk.
  viewer.searchTexts = async (query, told) => {
    viewer.choice.hits = null;
    viewer.choice.query = "";
    const byChunk = new Map();
    for (const row of viewer.matching()) {
      const chunk = viewer.index.columns.chunk[row];
      byChunk.set(chunk, [...(byChunk.get(chunk) ?? []), row]);
    }
    const hits = new Map();
    let done = 0;
    for (const [chunk, rows] of byChunk) {
      const { episodes } = await viewer.chunk(chunk);
      for (const row of rows) {
        const step = holds(episodes[viewer.index.columns.place[row]], query);
        if (step >= 0) hits.set(row, step);
      }
      if (!told((done += 1), byChunk.size)) return null;
    }
    return hits;
  };
})();
