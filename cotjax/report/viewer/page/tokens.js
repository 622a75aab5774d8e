"use strict";
// Sampled tokens, one by one, shaded by what is asked for.

(() => {
  const { el } = viewer;
  viewer.SHADES = {
    none: "nothing",
    logprob: "log-probability",
    role: "role",
    weight: "loss weight",
  };
  const LEGENDS = {
    none: "",
    logprob: "The darker, the less likely the token was under the model at temperature 1.",
    role: "By role in the loss: reasoning, action tags, action, end of the turn.",
    weight:
      "How much the token would count in the loss of this arm, as a mean over what its masking draws; struck out: never.",
    attention: "How much more attention the token's group got than its share of the tokens, a token; the bars under “Probes” have all groups.",
    gradient: "How much more of the action's gradient reached the token's group than its share of the tokens.",
  };
  viewer.shade = "none";

  // One entry a token: text, role, weight and log-probability, as far as they are known.
  const entries = (response, pieces) => {
    const runs = (response.roles ?? []).flatMap(([role, count, weight]) => Array(count).fill([role, weight]));
    return response.tokens.map((piece, place) => ({
      text: pieces[piece],
      role: runs[place]?.[0] ?? "",
      weight: runs[place]?.[1] ?? null,
      logprob: response.logprobs?.[place] ?? null,
    }));
  };

  const said = (token, place) => {
    const parts = [`token ${place + 1}`, token.role.toLowerCase().replace("_", " ")];
    if (token.weight !== null) parts.push(`loss weight ${token.weight}`);
    if (token.logprob !== null) {
      parts.push(`log-probability ${viewer.number(token.logprob)} (p = ${Math.exp(token.logprob).toFixed(2)})`);
    }
    return parts.filter(Boolean).join(", ");
  };

  const mix = (colour, share) => `color-mix(in srgb, var(${colour}) ${Math.round(100 * share)}%, transparent)`;

  const paint = (span, token, probes, kind) => {
    if (viewer.SHARED[viewer.shade]) {
      const density = viewer.density(probes, viewer.shade, kind, token.role);
      // Twice as much as the mean is half as dark as it gets.
      if (density !== null) span.style.backgroundColor = mix("--hot", 0.7 * (density / (density + 2)));
      return;
    }
    if (viewer.shade === "logprob" && token.logprob !== null) {
      span.style.backgroundColor = mix("--hot", 0.7 * (1 - Math.exp(token.logprob)));
    } else if (viewer.shade === "role") {
      span.classList.add(`role-${token.role}`);
    } else if (viewer.shade === "weight" && token.weight !== null) {
      span.classList.toggle("no-weight", token.weight === 0);
      span.style.backgroundColor = mix("--good", 0.5 * token.weight);
    }
  };

  const written = (text) => {
    const shown = text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
    return shown === "" ? "∅" : shown;
  };

  // The tokens of a response. Arrow keys and clicks choose one, and say what is known of it.
  viewer.tokens = (title, kind, response, pieces, probes) => {
    const tokens = entries(response, pieces);
    const status = el("p", { class: "note token-said", role: "status" });
    let active = -1;
    const spans = tokens.map((token, place) => {
      const span = el("span", { class: "token", title: said(token, place) });
      span.append(viewer.text(written(token.text)));
      paint(span, token, probes, kind);
      return span;
    });
    const choose = (place) => {
      if (place < 0 || place >= spans.length) return;
      spans[active]?.classList.remove("active");
      active = place;
      spans[active].classList.add("active");
      status.textContent = viewer.visible(`“${tokens[place].text}”: ${said(tokens[place], place)}`);
    };
    const prefilled = response.prefilled ? el("span", { class: "prefilled", title: "prefilled" }, response.prefilled) : null;
    const box = el(
      "div",
      {
        class: "tokens",
        tabindex: 0,
        role: "group",
        "aria-label": `${title}, ${tokens.length} tokens; arrow keys choose one`,
        on: {
          click: (event) => choose(spans.indexOf(event.target.closest(".token"))),
          keydown: (event) => {
            const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (!by) return;
            event.preventDefault();
            choose(active + by);
          },
        },
      },
      prefilled,
      spans,
    );
    return el("div", {}, el("p", { class: "note" }, el("b", {}, title), ` · ${tokens.length} tokens`), box, status);
  };

  viewer.shadeLegend = () => LEGENDS[viewer.shade];
})();
