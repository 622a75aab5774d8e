"use strict";
// The index and the chunks. Each is a script with one call of `viewer.arrived`.

(() => {
  const KEPT = 48; // chunks that stay in memory
  const waiting = new Map(); // name -> [resolve, reject]
  const chunks = new Map(); // name -> promise of a chunk, the oldest first

  const unpack = async (packed) => {
    const raw = atob(packed);
    const bytes = new Uint8Array(raw.length);
    for (let at = 0; at < raw.length; at++) bytes[at] = raw.charCodeAt(at);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };

  viewer.arrived = (name, packed) => {
    if (name === "index") {
      unpack(packed).then(viewer.start, (error) => viewer.fail(`data/index.js cannot be read: ${error.message}`));
    } else if (waiting.has(name)) {
      const [resolve, reject] = waiting.get(name);
      waiting.delete(name);
      unpack(packed).then(resolve, reject);
    }
  };

  const read = (name) =>
    new Promise((resolve, reject) => {
      waiting.set(name, [resolve, reject]);
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.addEventListener("load", () => script.remove());
      script.addEventListener("error", () => {
        script.remove();
        waiting.delete(name);
        reject(new Error(`data/${name}.js is missing or cannot be read; make the viewer again`));
      });
      document.head.append(script);
    });

  viewer.chunk = (number) => {
    const name = viewer.index.chunks[number];
    const found = chunks.get(name) ?? read(name);
    chunks.delete(name);
    chunks.set(name, found);
    if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
    found.catch(() => chunks.delete(name));
    return found;
  };

  // The episode of a row of the index, with the texts of its chunk's tokens.
  viewer.episode = async (row) => {
    const { chunk, place } = viewer.index.columns;
    const found = await viewer.chunk(chunk[row]);
    return { ...found.episodes[place[row]], pieces: found.pieces };
  };

  // What the index says of a row, by name.
  viewer.about = (row) => {
    const { columns, tables, runs } = viewer.index;
    const said = { row };
    for (const [name, column] of Object.entries(columns)) {
      said[name] = tables[name] ? tables[name][column[row]] : column[row];
    }
    const run = runs.find((each) => each.name === said.run);
    const arm = run.arms[said.arm] ?? { cell: said.arm, label: said.arm, seed: null };
    return { ...said, cell: arm.cell, label: arm.label, trained: arm.seed ?? said.seed };
  };

  viewer.address = (said, turn) =>
    "#" +
    [said.run, said.arm, said.checkpoint, said.driver, said.game, said.sample, turn]
      .map((part) => encodeURIComponent(part))
      .join("/");
})();
