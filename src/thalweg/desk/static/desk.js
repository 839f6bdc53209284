// What pages do beyond links and forms: keys, copying of code, light and dark. Every page works without it.
"use strict";
const root = document.documentElement;

// Light and dark: the system decides until the reader does.
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const toggle = document.getElementById("theme");
function sayTheme() {
  toggle.setAttribute("aria-pressed", String(isDark()));
}
function switchTheme() {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* then it lasts for this page */ }
  sayTheme();
  dispatchEvent(new Event("themechange"));
}
sayTheme();
toggle.addEventListener("click", switchTheme);
dark.addEventListener("change", () => {
  sayTheme();
  dispatchEvent(new Event("themechange"));
});

// Copying: every block of code gets a button, also those that arrive later.
async function copy(text) {
  if (navigator.clipboard && isSecureContext) return navigator.clipboard.writeText(text);
  const held = document.createElement("textarea");
  held.value = text;
  held.className = "hidden";
  document.body.append(held);
  held.select();
  const done = document.execCommand("copy");
  held.remove();
  if (!done) throw new Error("the browser does not allow copying");
}
function addCopying(within) {
  for (const pre of within.querySelectorAll("pre:has(> code)")) {
    if (pre.parentElement.classList.contains("code")) continue;
    const box = document.createElement("div");
    box.className = "code";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    pre.replaceWith(box);
    box.append(pre, button);
  }
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("button.copy");
  if (!button) return;
  const say = document.getElementById("said");
  try {
    await copy(button.parentElement.querySelector("code").textContent);
    button.textContent = "Copied";
    say.textContent = "Code copied";
  } catch {
    button.textContent = "Select and copy by hand";
  }
  setTimeout(() => { button.textContent = "Copy"; say.textContent = ""; }, 2000);
});
addCopying(document);
new MutationObserver((changes) => {
  for (const change of changes)
    for (const node of change.addedNodes) if (node.nodeType === 1 && !node.matches(".code, .code *")) addCopying(node);
}).observe(document.getElementById("main"), { childList: true, subtree: true });

// Keys. Letters do nothing while something is typed, and with a modifier they stay the browser's.
const keys = document.getElementById("keys");
function go(rel) {
  document.querySelector(`main a[rel="${rel}"]`)?.click();
}
function move(by) {
  const items = [...document.querySelectorAll("main [data-item], main .papers > li h2 a")].filter((one) => one.checkVisibility());
  if (!items.length) return;
  const at = items.indexOf(document.activeElement?.closest?.("li")?.querySelector("h2 a") ?? document.activeElement);
  const next = items[at < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(Math.max(at + by, 0), items.length - 1)];
  next.focus({ preventScroll: true });
  (next.closest("li, tr") ?? next).scrollIntoView({ block: "nearest" });
}
const does = {
  "/": () => {
    const field = document.getElementById("q");
    field.focus();
    field.select();
  },
  j: () => move(1),
  k: () => move(-1),
  n: () => go("next"),
  p: () => go("prev"),
  d: switchTheme,
  "?": () => (keys.open ? keys.close() : keys.showModal()),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key === "Escape" && typing) return typing.blur();
  if (typing || (keys.open && event.key !== "?") || !Object.hasOwn(does, event.key)) return;
  event.preventDefault();
  does[event.key]();
});
document.getElementById("show-keys").addEventListener("click", () => keys.showModal());

// Addresses that are pushed hold what was chosen, not every field that was left empty.
document.addEventListener("htmx:configRequest", (event) => {
  if (event.detail.verb !== "get") return;
  for (const [name, value] of [...event.detail.formData.entries()]) if (value === "") event.detail.formData.delete(name);
});

// A request that failed says so instead of leaving the page as it was.
for (const name of ["htmx:responseError", "htmx:sendError"])
  document.addEventListener(name, (event) => {
    const code = event.detail.xhr?.status;
    document.getElementById("said").textContent = "";
    const box = document.getElementById("trouble");
    box.textContent = !code ? "The desk does not answer. Is it still running?"
      : code === 401 || code === 403 ? "You are not signed in, or may not do this."
      : code === 429 ? "Too many requests: wait a moment and try again."
      : `That did not work (${code}).`;
    box.hidden = false;
    setTimeout(() => { box.hidden = true; }, 6000);
  });
