// The ranking: results, best first, with bars, and what was cut or failed.

import { textOf } from "./documents.js";
import { by, count, element } from "./dom.js";

const AT_ONCE = 100; // results that are put on the page, and again with each click
const LONG = 320; // characters of a document that is folded

/** Remove what a former request left. */
export function clear() {
  by("results").replaceChildren();
  by("summary").textContent = "";
  by("fault").textContent = "";
  by("more").hidden = by("curl").hidden = true;
}

/**
 * Show a ranking.
 * @param {object} answer The service's answer.
 * @param {Array} documents The documents that were sent.
 * @param {number} seconds How long it took.
 * @param {(index: number) => void} showPrompt Shows the prompt of a document.
 */
export function show(answer, documents, seconds, showPrompt) {
  const { results, usage } = answer;
  const scale = scaleOf(results.filter(isScored).map((result) => result.relevance_score));
  by("summary").textContent = summaryOf(results, usage, seconds);
  let shown = 0;
  const next = () => {
    const some = results.slice(shown, shown + AT_ONCE);
    by("results").append(
      ...some.map((result) => itemOf(result, documents[result.index], scale, showPrompt)),
    );
    shown += some.length;
    by("more").hidden = shown >= results.length;
    by("more").textContent = `Show more (${count(results.length - shown, "document")} left)`;
  };
  by("more").onclick = () => {
    const first = shown;
    next();
    by("results").children[first]?.querySelector("button")?.focus(); // where a reader goes on
  };
  next();
}

function isScored(result) {
  return result.windows > 0 && !result.error;
}

/** How long a bar is, between 0 and 1: scores as they are; logits between the least and the greatest. */
function scaleOf(scores) {
  if (scores.every((score) => score >= 0 && score <= 1)) return (score) => score;
  const least = Math.min(...scores);
  const range = Math.max(...scores) - least || 1;
  return (score) => (score - least) / range;
}

function summaryOf(results, usage, seconds) {
  const cut = results.filter((result) => result.truncated).length;
  const failed = results.filter((result) => !isScored(result)).length;
  const parts = [
    `${count(results.length, "document")} ranked in ${seconds.toFixed(seconds < 10 ? 2 : 0)} s`,
    `${count(usage.prompt_tokens, "token")} read`,
  ];
  if (cut) parts.push(`${cut} cut`);
  if (failed) parts.push(`${failed} not scored`);
  return `${parts.join(" · ")}.`;
}

function itemOf(result, given, scale, showPrompt) {
  const scored = isScored(result);
  const number = result.index + 1;
  const text = textOf(given);
  const score = scored ? result.relevance_score.toFixed(4) : "–";
  const fill = element("span");
  fill.style.width = `${(scored ? scale(result.relevance_score) : 0) * 100}%`;
  const body = element("p", { class: "text", id: `document-${number}`, dir: "auto" }, text);
  const actions = element("div", { class: "row" }, element("span", { class: "hint" }, `Document ${number}`));
  if (text.length > LONG || text.split("\n").length > 4) {
    body.classList.add("folded");
    actions.append(unfolding(body, number));
  }
  if (scored) {
    const prompt = element("button", { type: "button", class: "small", "aria-haspopup": "dialog" }, "Prompt");
    prompt.setAttribute("aria-label", `Prompt of document ${number}`);
    prompt.onclick = () => showPrompt(result.index);
    actions.append(prompt);
  }
  const notes = notesOf(result).map(([kind, note]) => element("li", { class: kind }, note));
  return element(
    "li",
    { class: scored ? "result" : "result unscored" },
    element(
      "div",
      { class: "score" },
      element("span", { class: "unseen" }, "Score "),
      element("span", { class: "number" }, score),
      element("span", { class: "bar", "aria-hidden": "true" }, fill),
    ),
    body,
    ...(notes.length ? [element("ul", { class: "notes" }, ...notes)] : []),
    actions,
  );
}

function unfolding(body, number) {
  const name = (folded) => (folded ? "Show all" : "Show less");
  const button = element(
    "button",
    { type: "button", class: "small", "aria-expanded": "false", "aria-controls": body.id },
    name(true),
  );
  button.setAttribute("aria-label", `${name(true)} of document ${number}`);
  button.onclick = () => {
    const folded = body.classList.toggle("folded");
    button.textContent = name(folded);
    button.setAttribute("aria-label", `${name(folded)} of document ${number}`);
    button.setAttribute("aria-expanded", String(!folded));
  };
  return button;
}

function notesOf(result) {
  const notes = [];
  if (result.truncated) notes.push(["warning", "Cut: the model did not read all of it"]);
  if (result.windows > 1) notes.push(["note", `Scored in ${result.windows} windows; the best one counts`]);
  if (result.error) notes.push(["failure", `Not scored: ${result.error}`]);
  else if (result.windows === 0) notes.push(["failure", "Not scored: it is blank"]);
  return notes;
}
