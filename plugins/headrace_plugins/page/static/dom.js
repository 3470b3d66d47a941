// What stands on the page is changed in place and only where it differs, so nothing flickers and a selection stays.
// Whatever comes from outside is set as text.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function drawn(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Has one child for each item, in their order: made with its key, and filled with the item each time.
export function keep(parent, items, keyOf, make, fill) {
  const before = new Map(Array.from(parent.children, (child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = before.get(key);
    before.delete(key);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = key;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    fill(child, item);
  }
  for (const child of before.values()) child.remove();
}

// A table's rows: each item as the texts of its cells.
export function rows(table, items, keyOf, textsOf) {
  table.hidden = items.length === 0;
  keep(table.tBodies[0], items, keyOf, () => element("tr"), (row, item) => {
    textsOf(item).forEach((text, index) => say(row.cells[index] ?? row.insertCell(), text));
  });
}

// Pairs of a name and a figure.
export function figures(list, pairs) {
  keep(list, pairs, ([name]) => name, () => element("div", {}, element("dt"), element("dd")), (pair, [name, text]) => {
    say(pair.children[0], name);
    say(pair.children[1], text);
  });
}
