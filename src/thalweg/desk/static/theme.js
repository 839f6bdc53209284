// Before the first paint, so that a page never flashes or shifts: the reader's own choice of light or dark, and
// that scripts run here, for what needs one (.scripted).
"use strict";
{
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* storage may be forbidden: then the system decides */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  document.documentElement.classList.add("scripted");
}
