// Elements of the page. All text goes in as text: nothing that a document holds becomes an element.

/** The element of the page with this id. */
export function by(id) {
  return document.getElementById(id);
}

/**
 * A new element.
 * @param {string} tag Its name.
 * @param {object} attributes Its attributes; null and false ones are left out.
 * @param {...(Node | string)} children What it holds; strings as text.
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A number and a noun: "1 document", "2 documents". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** Copy a text, and say so in an element for a while. */
export async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    said("Copied.");
  } catch {
    said("The browser does not allow copying here.");
  }
}
