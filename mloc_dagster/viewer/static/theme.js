// Before anything is drawn: the theme that was chosen here, or the system's.
"use strict";
(() => {
  const kept = localStorage.getItem("mloc-theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = (theme) => {
    const chosen = theme ?? (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = chosen;
    document.documentElement.dataset.agThemeMode = chosen;
    dispatchEvent(new Event("mloc-theme"));
  };
  apply(kept);
  dark.addEventListener("change", () => apply(localStorage.getItem("mloc-theme")));
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme")?.addEventListener("click", () => {
      const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      localStorage.setItem("mloc-theme", next);
      apply(next);
    });
    for (const each of document.querySelectorAll("[data-docs]")) each.hidden = !each.dataset.docs;
    for (const each of document.querySelectorAll("[data-session]")) each.hidden = !each.dataset.session;
  });
})();
