"use strict";
// Keys, the help window, and the theme.

(() => {
  const $ = (id) => document.getElementById(id);
  const THEMES = ["system", "light", "dark"];

  const setTheme = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    $("theme").textContent = `Theme: ${name}`;
    try {
      localStorage.setItem("cotjax-theme", name);
    } catch {
      // A browser may keep nothing for pages from a disk.
    }
  };
  const keptTheme = () => {
    try {
      return localStorage.getItem("cotjax-theme");
    } catch {
      return null;
    }
  };

  const openPanel = () => {
    $("panel").open = true;
  };

  const KEYS = {
    j: () => viewer.current && viewer.showStep(viewer.current.turn + 1),
    k: () => viewer.current && viewer.showStep(viewer.current.turn - 1),
    n: () => viewer.moveEpisode(1),
    p: () => viewer.moveEpisode(-1),
    "/": () => {
      openPanel();
      $("query").focus();
      $("query").select();
    },
    f: () => {
      openPanel();
      document.querySelector("#selects select, #marks input")?.focus();
    },
    c: () => $("compare")?.focus(),
    t: () => {
      const names = Object.keys(viewer.SHADES);
      viewer.shadeBy(names[(names.indexOf(viewer.shade) + 1) % names.length]);
    },
    "?": () => $("help").showModal(),
  };

  viewer.listenKeys = () => {
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
      const field = event.target.closest?.("input, select, textarea");
      if (event.key === "Escape" && field) {
        field.blur();
        $("episode").focus();
        return;
      }
      const typing = field && !(field.type === "checkbox");
      if (typing || !Object.hasOwn(KEYS, event.key)) return;
      event.preventDefault();
      KEYS[event.key]();
    });
    $("help-open").addEventListener("click", KEYS["?"]);
    $("skip").addEventListener("click", (event) => {
      event.preventDefault();
      $("episode").focus();
    });
    $("theme").addEventListener("click", () => {
      const now = document.documentElement.dataset.theme ?? "system";
      setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
    });
    const kept = keptTheme();
    if (THEMES.includes(kept)) setTheme(kept);
  };
})();
