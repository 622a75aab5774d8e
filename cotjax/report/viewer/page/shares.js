"use strict";
// Where attention (D6) and gradient (D7) went while an action was predicted, by group of tokens.

(() => {
  const { el, text } = viewer;
  const PROBES = { attention: "attention (D6)", gradient: "gradient (D7)" };
  const SHARES = { share: "share", input_share: "by |gradient × embedding|", uniform: "share of the tokens" };
  const KINDS = { cot: "while the CoT action is predicted", prompt: "while the prompt action is predicted" };
  const GROUP_OF = { REASONING: "reasoning", ACTION_OPEN: "tags", ACTION_CLOSE: "tags", END: "tags", ACTION: "action" };
  viewer.SHARED = PROBES;

  const isShares = (part) => part !== null && typeof part === "object" && part.share && part.uniform;

  // How much more than its share of the tokens a role's group got: 1 is as much.
  viewer.density = (probes, probe, kind, role) => {
    const part = probes?.[probe]?.[kind];
    const group = GROUP_OF[role];
    if (!isShares(part) || !part.uniform[group]) return null;
    return (part.share[group] ?? 0) / part.uniform[group];
  };

  const percent = (value) => `${(100 * value).toFixed(1)} %`;

  const bar = (title, shares) => {
    const parts = Object.entries(shares).map(([group, share]) => {
      const part = el("span", { class: `group group-${group}`, title: `${group}: ${percent(share)}` }, share > 0.12 ? group : "");
      part.style.width = `${100 * share}%`;
      return part;
    });
    const words = Object.entries(shares).map(([group, share]) => `${group} ${percent(share)}`);
    return el(
      "div",
      { class: "share-row" },
      el("span", { class: "soft" }, title),
      el("div", { class: "share-bar", role: "img", "aria-label": `${title}: ${words.join(", ")}` }, parts),
    );
  };

  // The bars of one probe's row; [] where it has no shares.
  viewer.shareBars = (name, fields) =>
    Object.entries(KINDS)
      .filter(([kind]) => isShares(fields[kind]))
      .map(([kind, words]) =>
        el(
          "figure",
          { class: "shares" },
          el("figcaption", {}, text(`${PROBES[name] ?? name} ${words}`)),
          Object.entries(SHARES)
            .filter(([key]) => fields[kind][key])
            .map(([key, title]) => bar(title, fields[kind][key])),
        ),
      );
})();
