/** A request, written down for a user to copy: for a shell, for Python, for JavaScript. */

import { accessKey } from "./access-key.js";
import { isUpload, toJson, uploadsIn, urlOf } from "./call.js";

/** @import {Call, Upload} from "./call.js" */

/** @type {Record<string, (calls: Call[]) => string>} Language -> these requests in it. */
export const LANGUAGES = {
  curl: (calls) => [...curlDownloads(calls), ...calls.map(toCurl)].join("\n\n"),
  Python: (calls) => [...importsOf(calls), "", ...pythonDownloads(calls), ...calls.map(toPython)].join("\n"),
  JavaScript: (calls) => [...filesImport(calls), ...calls.map(toJavaScript)].join("\n"),
};

/** What is copied must carry the key where requests do; it has a variable's name in its place. */
const hasKey = () => accessKey() !== null;
const BINARY = /safetensors|npy|octet-stream/;
/** Files that the server offers are fetched first, others are the user's own. @param {Call[]} calls */
const offered = (calls) => {
  const files = calls.flatMap(filesOf).filter((file) => file.url);
  return [...new Map(files.map((file) => [file.name, file])).values()];
};

/** @param {Call} call @returns {Upload[]} */
function filesOf(call) {
  const inForm = (call.form ?? []).map(([, value]) => value).filter((value) => typeof value !== "string");
  return [...(call.file ? [call.file] : []), ...inForm, ...uploadsIn(call.json)];
}

/** Stands for a file in JSON that is written: no text of the user's has it. */
const MARK = `${Math.random()}`;

/** A data: URI ahead of the file's base64. @param {Upload} file */
function uriHead({ blob }) {
  return `data:${blob.type || "application/octet-stream"};base64,`;
}

/**
 * JSON with each file's base64 written in the language.
 *
 * @param {unknown} json
 * @param {(text: string) => string} write the text ahead of, between and behind the files
 * @param {(file: Upload) => string} writeFile
 */
function withFiles(json, write, writeFile) {
  const files = uploadsIn(json);
  const texts = toJson(
    json,
    files.map((file) => uriHead(file) + MARK),
  ).split(MARK);
  return texts.map((text, place) => (place > 0 ? writeFile(files[place - 1]) : "") + write(text)).join("");
}

/** The file's name as it is safe in a command: no folder, no sign that curl's -F reads. @param {Upload} file */
function nameOf(file) {
  return file.name.replace(/[^\p{L}\p{N}_. -]+/gu, "_").replace(/^-+/, "") || "picture";
}

/** @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** @param {Call[]} calls */
function curlDownloads(calls) {
  const lines = offered(calls).map((file) => `curl -s -o ${quoted(nameOf(file))} ${quoted(String(file.url))}`);
  return lines.length > 0 ? [lines.join("\n")] : [];
}

/** Several answers must not overwrite each other. @param {Call} call @param {number} index @param {number} count */
function answerFile(call, index, count) {
  const name = count > 1 ? `answer-${index + 1}` : "answer";
  return `${name}.${/npy|safetensors/.exec(call.accept ?? "")?.[0] ?? "bin"}`;
}

/** @param {Call} call @param {number} index @param {Call[]} calls */
function toCurl(call, index, calls) {
  const parts = [`curl -s ${quoted(String(urlOf(call)))}`];
  if (call.accept) parts.push(`-H ${quoted(`Accept: ${call.accept}`)}`);
  if (hasKey()) parts.push(`-H "Authorization: Bearer $VT_KEY"`);
  for (const [name, value] of call.form ?? []) {
    if (typeof value === "string") parts.push(`--form-string ${quoted(`${name}=${value}`)}`);
    else parts.push(`-F ${quoted(`${name}=@${nameOf(value)}`)}`);
  }
  if (call.file) {
    parts.push(`-H ${quoted(`Content-Type: ${call.file.blob.type || "application/octet-stream"}`)}`);
    parts.push(`--data-binary ${quoted(`@${nameOf(call.file)}`)}`);
  } else if (call.json !== undefined) {
    const json = withFiles(call.json, quoted, (file) => `"$(base64 < ${quoted(nameOf(file))} | tr -d '\\n')"`);
    if (uploadsIn(call.json).length === 0) {
      parts.push(`--json ${json}`);
    } else {
      parts.unshift(`printf %s ${json} |`); // a file is too long for an argument of curl
      parts.push("--json @-");
    }
  }
  if (call.method === "POST" && !call.form && !call.file && call.json === undefined) parts.push("-X POST");
  if (BINARY.test(call.accept ?? "")) parts.push(`-o ${quoted(answerFile(call, index, calls.length))}`);
  return parts.join(" \\\n  ");
}

/** @param {unknown} value as JSON has it @returns {string} */
function python(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (isUpload(value)) {
    const read = `open(${python(nameOf(value))}, "rb").read()`;
    return `${python(uriHead(value))} + base64.b64encode(${read}).decode()`;
  }
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([key, each]) => `${python(key)}: ${python(each)}`)
      .join(", ")}}`;
  }
  return JSON.stringify(value); // numbers and strings are written alike in both
}

/** @param {Call[]} calls */
function importsOf(calls) {
  const standard = [
    ...(calls.some((call) => uploadsIn(call.json).length > 0) ? ["import base64"] : []),
    ...(hasKey() ? ["import os"] : []),
  ];
  const lines = [...standard, ...(standard.length > 0 ? [""] : []), "import httpx"];
  const answers = calls.filter((call) => /safetensors/.test(call.accept ?? ""));
  const isBfloat16 = answers.some((call) => call.query?.dtype === "bfloat16"); // which NumPy does not have
  if (answers.length > 0) lines.push(`from safetensors.${isBfloat16 ? "torch" : "numpy"} import load`);
  return lines;
}

/** @param {Call[]} calls */
function pythonDownloads(calls) {
  const lines = offered(calls).map(
    (file) => `open(${python(nameOf(file))}, "wb").write(httpx.get(${python(String(file.url))}).content)`,
  );
  return lines.length > 0 ? [...lines, ""] : [];
}

/** @param {Call} call */
function toPython(call) {
  const options = [python(String(new URL(call.path, document.baseURI)))];
  if (call.query && Object.keys(call.query).length > 0) options.push(`params=${python(inQuery(call.query))}`);
  const headers = [];
  if (call.accept) headers.push(`"Accept": ${python(call.accept)}`);
  if (call.file) headers.push(`"Content-Type": ${python(call.file.blob.type || "application/octet-stream")}`);
  if (hasKey()) headers.push(`"Authorization": f"Bearer {os.environ['VT_KEY']}"`);
  if (headers.length > 0) options.push(`headers={${headers.join(", ")}}`);
  if (call.form) {
    const parts = call.form.map(([name, value]) =>
      typeof value === "string"
        ? `(${python(name)}, (None, ${python(value)}))`
        : `(${python(name)}, open(${python(nameOf(value))}, "rb"))`,
    );
    options.push(`files=[${parts.join(", ")}]`);
  } else if (call.file) {
    options.push(`content=open(${python(nameOf(call.file))}, "rb").read()`);
  } else if (call.json !== undefined) {
    options.push(`json=${python(call.json)}`);
  }
  return [
    `response = httpx.${call.method.toLowerCase()}(`,
    ...options.map((option) => `    ${option},`),
    "    timeout=60,",
    ")",
    "response.raise_for_status()",
    pythonAnswer(call),
    "",
  ].join("\n");
}

/** @param {Call} call */
function pythonAnswer(call) {
  if (/safetensors/.test(call.accept ?? "")) {
    return "for name, tensor in load(response.content).items():\n    print(name, tensor.shape, tensor.dtype)";
  }
  return BINARY.test(call.accept ?? "") ? "print(len(response.content))" : "print(response.text)";
}

/** Values as they stand in a URL: Python and JavaScript write true differently. @param {NonNullable<Call["query"]>} query */
function inQuery(query) {
  return Object.fromEntries(
    Object.entries(query).map(([name, value]) => [name, Array.isArray(value) ? value.map(String) : String(value)]),
  );
}

/** @param {Call[]} calls */
function filesImport(calls) {
  const own = calls.flatMap(filesOf).filter((file) => !file.url);
  return own.length > 0 ? [`import { readFile } from "node:fs/promises";`, ""] : [];
}

/** @param {Upload} file an expression that gives its Blob */
function blobOf(file) {
  return file.url
    ? `await (await fetch(${JSON.stringify(file.url)})).blob()`
    : `new Blob([await readFile(${JSON.stringify(nameOf(file))})])`;
}

/** @param {Upload} file an expression that gives its base64 */
function base64Of(file) {
  return file.url
    ? `Buffer.from(await (await fetch(${JSON.stringify(file.url)})).arrayBuffer()).toString("base64")`
    : `(await readFile(${JSON.stringify(nameOf(file))}, "base64"))`;
}

/** @param {Call} call */
function toJavaScript(call) {
  const headers = [];
  if (call.accept) headers.push(`Accept: ${JSON.stringify(call.accept)}`);
  if (hasKey()) headers.push("Authorization: `Bearer ${process.env.VT_KEY}`");
  const options = [`method: ${JSON.stringify(call.method)}`];
  const lines = ["{"];
  if (call.form) {
    lines.push("  const form = new FormData();");
    for (const [name, value] of call.form) {
      const field = JSON.stringify(name);
      if (typeof value === "string") lines.push(`  form.append(${field}, ${JSON.stringify(value)});`);
      else lines.push(`  form.append(${field}, ${blobOf(value)}, ${JSON.stringify(nameOf(value))});`);
    }
    options.push("body: form");
  } else if (call.file) {
    headers.push(`"Content-Type": ${JSON.stringify(call.file.blob.type || "application/octet-stream")}`);
    options.push(`body: ${blobOf(call.file)}`);
  } else if (call.json !== undefined) {
    headers.push(`"Content-Type": "application/json"`);
    const json = withFiles(
      call.json,
      (text) => text,
      (file) => `" + ${base64Of(file)} + "`,
    );
    options.push(`body: JSON.stringify(${json})`);
  }
  if (headers.length > 0) options.push(`headers: { ${headers.join(", ")} }`);
  lines.push(
    `  const response = await fetch(${JSON.stringify(String(urlOf(call)))}, {`,
    ...options.map((option) => `    ${option},`),
    "  });",
    "  if (!response.ok) throw new Error(await response.text());",
    BINARY.test(call.accept ?? "")
      ? "  console.log(new Uint8Array(await response.arrayBuffer()));"
      : "  console.log(await response.text());",
    "}",
  );
  return lines.join("\n");
}
