// Findings as marks on a curve: those too near to each other for one each share one, which shows the gravest.
import { whole } from "./series.js";

const NEAR = 22; // pixels: marks closer than this share one
const NAMED = 12; // findings that a shared mark names
const SIGNS = { info: "i", warning: "!", critical: "‼" };

export const gravity = ({ severity }) => Object.keys(SIGNS).indexOf(severity);

// Groups of marks, from left to right, each with the gravest first. left: where a mark's step lies.
export function together(marks, left) {
  const groups = [];
  for (const mark of [...marks].sort((a, b) => a.step - b.step)) {
    const at = left(mark);
    const last = groups.at(-1);
    if (last && at - last.left < NEAR) last.marks.push(mark);
    else groups.push({ left: at, marks: [mark] });
  }
  for (const { marks: those } of groups) those.sort((a, b) => gravity(b) - gravity(a));
  return groups;
}

// The address of a finding that another page lists: the page from it on, with the same curves.
export function elsewhere(number) {
  const address = new URL(location.href);
  address.searchParams.delete("all");
  address.searchParams.set("findings", number);
  return `${address.search}#finding-${number}`;
}

// The link from a curve to the gravest finding of a group. pick: called with the numbers of all of them, or with none.
export function linked({ left, marks }, pick) {
  const [first] = marks;
  const numbers = marks.map(({ number }) => number);
  const names = marks.slice(0, NAMED).map((one) => `${one.name} from step ${whole(one.step)}, ${one.severity}`);
  if (marks.length > NAMED) names.push(`and ${marks.length - NAMED} more`);
  const link = document.createElement("a");
  link.className = `mark ${first.severity}`;
  link.href = first.elsewhere ? elsewhere(first.number) : `#finding-${first.number}`;
  link.dataset.numbers = numbers.join(" ");
  link.title = names.join("\n");
  link.textContent = SIGNS[first.severity] ?? "•";
  if (marks.length > 1) link.append(Object.assign(document.createElement("small"), { textContent: marks.length }));
  link.setAttribute("aria-label", `${marks.length > 1 ? `${marks.length} findings` : "Finding"}: ${names.join("; ")}`);
  link.style.left = `${left}px`;
  for (const name of ["mousedown", "dblclick"]) link.addEventListener(name, (event) => event.stopPropagation());
  for (const name of ["mouseenter", "focus"]) link.addEventListener(name, () => pick(numbers));
  for (const name of ["mouseleave", "blur"]) link.addEventListener(name, () => pick([]));
  return link;
}
