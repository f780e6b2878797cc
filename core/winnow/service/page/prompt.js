// The prompt of a document, in a dialog: each part in its colour, with its name in front and in the legend.

import { by, copy, count, element } from "./dom.js";

const NAMES = { instruction: "instruction", query: "query", document: "document", template: "template" };

/** Part of a piece, for people: what stands before, between and after the caller's texts is the template. */
function nameOf(piece) {
  return piece.control ? "control" : (NAMES[piece.part] ?? "template");
}

/**
 * Open the dialog.
 * @param {number} number Which document, from 1.
 * @param {Promise<object>} answer What /v1/prompt answers.
 */
export async function open(number, answer) {
  const dialog = by("prompt");
  by("prompt-title").textContent = `Prompt of document ${number}`;
  by("prompt-facts").textContent = "It is being made…";
  for (const id of ["prompt-legend", "prompt-text", "prompt-fault", "prompt-copied"]) by(id).replaceChildren();
  by("prompt-copy").hidden = by("prompt-text").hidden = true;
  by("prompt-close").onclick = () => dialog.close();
  dialog.showModal(); // the browser keeps the focus inside, closes it on Escape, and gives the focus back
  by("prompt-title").focus();
  try {
    show(await answer);
  } catch (error) {
    by("prompt-facts").textContent = "";
    by("prompt-fault").textContent = error.message;
  }
}

function show(found) {
  by("prompt-facts").textContent = factsOf(found);
  by("prompt-legend").replaceChildren(...legendOf(found));
  by("prompt-text").replaceChildren(...found.pieces.flatMap(markOf));
  by("prompt-text").hidden = by("prompt-copy").hidden = false;
  const whole = found.pieces.map((piece) => piece.text).join("");
  by("prompt-copy").onclick = () => copy(whole, (said) => (by("prompt-copied").textContent = said));
}

function factsOf(found) {
  const facts = [`${count(found.tokens.total, "token")} of at most ${found.max_length.toLocaleString("en")}.`];
  facts.push(found.template ? `Template: ${found.template}.` : "No template: the tokenizer joins query and document.");
  if (found.query_truncated) facts.push("The query is cut.");
  if (found.truncated) facts.push("The document is cut.");
  if (found.windows > 1) facts.push(`The document is scored in ${found.windows} windows; this is the first.`);
  if (found.judged) facts.push(`The score comes from the last token, ${JSON.stringify(found.judged)}.`);
  return facts.join(" ");
}

function legendOf(found) {
  const { tokens, pieces } = found;
  const rows = [
    ["instruction", tokens.instruction],
    ["query", tokens.query],
    ["document", tokens.document],
    ["template", tokens.before + tokens.between + tokens.after],
  ];
  const items = rows
    .filter(([, number]) => number > 0)
    .map(([part, number]) =>
      element("li", {}, element("span", { class: `part ${part}` }, part), ` ${count(number, "token")}`),
    );
  const controls = pieces.filter((piece) => piece.control).length;
  const sample = element("span", { class: "part control" }, "⟦control token⟧");
  if (controls) items.push(element("li", {}, sample, ` ${controls}, part of the template`));
  items.push(element("li", {}, element("span", { class: "newline" }, "↵"), " line break"));
  return items;
}

/** A piece with its name in front, so that colour is not all that tells it apart. */
function markOf(piece) {
  const name = nameOf(piece);
  if (name === "control") return [element("span", { class: "part control" }, `⟦${piece.text}⟧`)];
  const mark = element("span", { class: `part ${name}` });
  if (name !== "template") mark.append(element("span", { class: "tag" }, name), " ");
  piece.text.split("\n").forEach((line, at) => {
    if (at) mark.append(element("span", { class: "newline", "aria-hidden": "true" }, "↵"), "\n");
    mark.append(line);
  });
  return [mark];
}
