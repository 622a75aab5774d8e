"use strict";
// Texts of models, environments and files are untrusted. They reach the page as text nodes alone,
// and what would hide or reorder them is written as an escape.

var viewer = {};

(() => {
  const ACTING = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
  const HARMLESS = new Set(["\n", "\t", "\u200c", "\u200d"]);
  const LONG = 900;
  const SHOWN = 240;

  const escape = (char) => {
    const code = char.codePointAt(0);
    return code < 256
      ? `\\x${code.toString(16).padStart(2, "0")}`
      : `\\u${code > 0xffff ? `{${code.toString(16)}}` : code.toString(16).padStart(4, "0")}`;
  };

  // A text with each control, override and invisible character as its escape.
  viewer.visible = (text) =>
    String(text).replace(ACTING, (char) => (HARMLESS.has(char) ? char : escape(char)));

  // An element. Attributes are set as they are, `on` holds listeners; children are nodes or texts.
  viewer.el = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on") {
        for (const [event, run] of Object.entries(value)) element.addEventListener(event, run);
      } else if (value === true) {
        element.setAttribute(name, "");
      } else if (value !== false && value !== null && value !== undefined) {
        element.setAttribute(name, viewer.visible(value));
      }
    }
    for (const child of children.flat()) {
      if (child === null || child === undefined || child === false) continue;
      element.append(child instanceof Node ? child : document.createTextNode(viewer.visible(child)));
    }
    return element;
  };

  // Untrusted text, isolated from the direction of what stands around it; escapes stand out.
  viewer.text = (text, attributes = {}) => {
    const element = viewer.el("bdi", attributes);
    const string = String(text);
    let at = 0;
    for (const match of string.matchAll(ACTING)) {
      if (HARMLESS.has(match[0])) continue;
      element.append(string.slice(at, match.index));
      element.append(viewer.el("span", { class: "escape" }, escape(match[0])));
      at = match.index + match[0].length;
    }
    element.append(string.slice(at));
    return element;
  };

  // A block of untrusted text; a long one is folded.
  viewer.block = (text, name = "text") => {
    const string = String(text);
    if (string.length <= LONG) return viewer.text(string, { class: "block" });
    const start = [...string.slice(0, SHOWN)].slice(0, -1).join("");
    return viewer.el(
      "details",
      { class: "fold" },
      viewer.el(
        "summary",
        {},
        viewer.text(`${start} …`, { class: "preview" }),
        viewer.el("span", { class: "more" }, ` all ${string.length.toLocaleString("en")} characters of the ${name}`),
      ),
      viewer.text(string, { class: "block" }),
    );
  };

  viewer.number = (value) => (value === null || value === undefined ? "–" : value.toFixed(2).replace("-", "−"));
  viewer.count = (value) => value.toLocaleString("en");
})();
