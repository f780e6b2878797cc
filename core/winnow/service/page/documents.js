// Documents out of pasted text and out of files.

const TEXT_FIELDS = ["text", "content", "document", "passage", "contents", "body"];

/**
 * The documents of a text.
 * @param {string} text The text.
 * @param {"line" | "blank"} split Whether documents end at line breaks or at blank lines.
 */
export function split(text, split) {
  const pieces = text.split(split === "line" ? /\r\n|\r|\n/ : /(?:\r\n|\r|\n)(?:[^\S\r\n]*(?:\r\n|\r|\n))+/);
  return pieces.map((piece) => piece.trim()).filter((piece) => piece !== "");
}

/**
 * What a file holds: documents, and perhaps a query and an instruction, if it is the body of a request.
 * @param {string} name The file's name, whose ending says what it is.
 * @param {string} text Its contents.
 * @param {"line" | "blank"} how As in `split`.
 * @throws {Error} It is not what its name says.
 */
export function inFile(name, text, how) {
  const kind = name.toLowerCase().split(".").pop();
  if (kind === "jsonl" || kind === "ndjson") return { documents: lines(name, text) };
  if (kind !== "json") return { documents: split(text, how) };
  const whole = parsed(text, name);
  const list = Array.isArray(whole) ? whole : (whole?.documents ?? whole?.texts);
  if (!Array.isArray(list)) throw new Error(`${name} must hold a list of documents, or an object with “documents”.`);
  const documents = list.map((row, at) => documentOf(row, `Document ${at + 1} of ${name}`));
  return { documents, query: asText(whole.query), instruction: asText(whole.instruction) };
}

/** The text of a document, for people. */
export function textOf(document) {
  if (typeof document === "string") return document;
  if (typeof document?.text === "string") return document.text;
  const parts = Array.isArray(document) ? document : (document?.content ?? []);
  const texts = parts.map((part) => (typeof part === "string" ? part : part?.text)).filter(Boolean);
  return texts.join("\n") || "(a document without text)";
}

function lines(name, text) {
  const documents = [];
  text.split(/\r\n|\r|\n/).forEach((line, at) => {
    if (line.trim() === "") return;
    const where = `Line ${at + 1} of ${name}`;
    documents.push(documentOf(parsed(line, where), where));
  });
  return documents;
}

function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${what} is not JSON.`);
  }
}

function documentOf(row, where) {
  if (typeof row === "string" || Array.isArray(row)) return row;
  if (row === null || typeof row !== "object") throw new Error(`${where} must be a text, or an object with “text”.`);
  const field = TEXT_FIELDS.find((name) => typeof row[name] === "string");
  if (row.image || Array.isArray(row.content)) return row; // the service takes these as they are
  if (field === undefined) throw new Error(`${where} has no “text”.`);
  return row[field];
}

function asText(value) {
  return typeof value === "string" ? value : undefined;
}
