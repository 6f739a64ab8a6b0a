// Comfort only: without scripts everything is there, with the code folded and the contents open.
const codes = document.querySelectorAll("details.code");
const button = document.querySelector("button.all-code");
button?.addEventListener("click", () => {
  const open = button.getAttribute("aria-pressed") !== "true";
  codes.forEach((code) => { code.open = open; });
  button.setAttribute("aria-pressed", open);
  button.textContent = open ? "Hide code" : "Show code";
});

const contents = document.querySelector("details.contents");
if (contents && matchMedia("(max-width: 62rem)").matches) contents.open = false;

// The section that is being read, in the contents at the side.
const links = new Map();
contents?.querySelectorAll("a").forEach((a) => links.set(a.hash.slice(1), a));
const headings = [...document.querySelectorAll("main h2, main h3")].filter((h) => links.has(h.id));
let current;
function mark() {
  const passed = headings.filter((h) => h.getBoundingClientRect().top < 120);
  const next = links.get(passed.at(-1)?.id);
  if (next === current) return;
  current?.removeAttribute("aria-current");
  next?.setAttribute("aria-current", "true");
  next?.scrollIntoView({ block: "nearest" });
  current = next;
}
if (headings.length && !matchMedia("(max-width: 62rem)").matches) {
  addEventListener("scroll", mark, { passive: true });
}
