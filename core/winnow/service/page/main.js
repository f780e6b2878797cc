// What the page does when it is opened, and when its reader asks for a ranking.

import { inFile, split } from "./documents.js";
import { by, copy, count, element } from "./dom.js";
import * as prompt from "./prompt.js";
import * as ranking from "./ranking.js";
import { asCurl, ask, key, setKey } from "./service.js";

const EXAMPLE = {
  query: "Why does the water at the coast come and go?",
  documents: [
    "Take one tablet twice a day, in the morning and in the evening, with a glass of water.",
    "The level of the sea will rise as the ice of Greenland melts and as warmer water takes more room.",
    "Tides come from the pull of the moon. Its gravity draws the sea into two bulges, and as the Earth turns, every " +
      "coast passes through both of them.",
    "Why do share prices rise and fall many times a day? Buyers and sellers change their minds.",
    "The Dead Sea is so salty that a swimmer cannot sink in it. No fish lives there.",
  ],
};
const READY_EVERY = 2000; // milliseconds between two questions whether the model is loaded

let file = null; // {name, text} of the opened file
let running = null; // the AbortController of the request that runs

/** The documents as they are now. */
function documents() {
  const how = new FormData(by("form")).get("split");
  return file ? inFile(file.name, file.text, how).documents : split(by("documents").value, how);
}

function countDocuments() {
  try {
    const number = count(documents().length, "document");
    by("documents-count").textContent = file ? `${number} from ${file.name}` : number;
  } catch (error) {
    by("documents-count").textContent = error.message;
  }
}

async function openFile(given) {
  if (!given) return;
  file = { name: given.name, text: await given.text() };
  by("fault").textContent = "";
  try {
    const found = inFile(file.name, file.text, "line");
    if (found.query) by("query").value = found.query;
    if (found.instruction) by("instruction").value = found.instruction;
  } catch (error) {
    fail(error);
    file = null;
  }
  const asText = file?.name.toLowerCase().match(/\.(jsonl|ndjson|json)$/) === null;
  if (asText) {
    by("documents").value = file.text; // where it can be changed
    file = null;
  }
  by("pasted").hidden = file !== null;
  by("remove-file").hidden = file === null;
  countDocuments();
}

function removeFile() {
  file = null;
  by("file").value = "";
  by("pasted").hidden = false;
  by("remove-file").hidden = true;
  countDocuments();
}

/** What the request says besides the documents. */
function options() {
  const said = { query: by("query").value, model: by("model").value };
  if (by("instruction").value.trim()) said.instruction = by("instruction").value;
  if (by("template").value.trim()) said.score_template = by("template").value;
  if (by("length").value) said.max_tokens_per_doc = Number(by("length").value);
  return said;
}

/** Show why there is no ranking, at the field that is wrong. */
function fail(error, given = []) {
  const index = error.param?.match(/^body\.documents\.(\d+)/)?.[1];
  const which = index === undefined || given[index] === undefined ? "" : `Document ${Number(index) + 1}: `;
  by("fault").textContent = which + error.message;
  if (error.status === 401) askForKey();
  else if (error.param === "body.query") by("query").focus();
}

function askForKey() {
  by("key-section").hidden = false;
  by("key").focus();
}

async function rank() {
  if (running) return;
  ranking.clear();
  let given;
  try {
    given = documents();
    if (!by("query").value.trim()) throw Object.assign(new Error("Write a query first."), { param: "body.query" });
    if (given.length === 0) throw new Error("There are no documents yet: paste some, or open a file.");
  } catch (error) {
    fail(error);
    return;
  }
  const said = options();
  const body = { ...said, documents: given, return_documents: false };
  if (by("most").value) body.top_n = Number(by("most").value);
  if (by("raw").checked) body.raw_scores = true;
  running = new AbortController();
  by("rank").disabled = true;
  by("stop").hidden = false;
  by("summary").textContent = `Ranking ${count(given.length, "document")}…`;
  const begin = performance.now();
  try {
    const answer = await ask("v1/rerank", body, running.signal);
    const showPrompt = (index) => prompt.open(index + 1, ask("v1/prompt", { ...said, document: given[index] }));
    ranking.show(answer, given, (performance.now() - begin) / 1000, showPrompt);
    bringIntoView(by("ranking"));
    by("curl").hidden = false;
    by("curl").onclick = () => copy(asCurl("v1/rerank", body), (message) => (by("summary").textContent = message));
  } catch (error) {
    by("summary").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") fail(error, given);
  } finally {
    running = null;
    by("rank").disabled = false;
    by("stop").hidden = true;
  }
}

/** Scroll to the top of an element, unless that can be seen already. */
function bringIntoView(shown) {
  const { top } = shown.getBoundingClientRect();
  if (top < 0 || top > window.innerHeight / 2) shown.scrollIntoView();
}

/** Ask for the names of the model, with the key if there is one. */
async function loadModels() {
  try {
    const { data } = await ask("v1/models");
    by("model").replaceChildren(...data.map((model) => element("option", { value: model.id }, model.id)));
    by("served").textContent = data[0].id;
    by("key-section").hidden = true;
    by("fault").textContent = "";
    return true;
  } catch (error) {
    if (error.status === 401 && !key()) askForKey();
    else fail(error);
    return false;
  }
}

async function watchReadiness() {
  try {
    await ask("ready");
    by("state").textContent = "ready";
    by("state").className = "state good";
  } catch (error) {
    by("state").textContent = error.status === 503 ? "loading…" : "not reachable";
    by("state").className = "state";
    setTimeout(watchReadiness, READY_EVERY);
  }
}

async function useKey() {
  setKey(by("key").value.trim());
  if (await loadModels()) {
    by("key").value = "";
    by("query").focus();
  }
}

function tryExample() {
  removeFile();
  by("form").querySelector('[name="split"][value="line"]').checked = true;
  by("query").value = EXAMPLE.query;
  by("documents").value = EXAMPLE.documents.join("\n");
  countDocuments();
  rank();
}

by("form").addEventListener("submit", (event) => {
  event.preventDefault();
  rank();
});
by("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target === by("key")) {
    event.preventDefault();
    useKey();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    rank();
  }
});
by("form").addEventListener("input", countDocuments);
by("file").addEventListener("change", () => openFile(by("file").files[0]));
by("documents").addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length === 0) return;
  event.preventDefault();
  openFile(event.dataTransfer.files[0]);
});
by("remove-file").addEventListener("click", () => {
  removeFile();
  by("documents").focus(); // the button is gone
});
by("use-key").addEventListener("click", useKey);
by("stop").addEventListener("click", () => running?.abort());
by("example").addEventListener("click", tryExample);

countDocuments();
loadModels();
watchReadiness();
