/**
 * Requests to this server. A request is described once, as a `Call`: `send` sends it, and snippets.js writes it down for
 * a user to copy. So both are the same.
 */

import { accessKey, forgetKey, keepKey } from "./access-key.js";

/**
 * A file to send, and how a user gets it: `url` is set for a file that this server offers.
 * @typedef {{name: string, blob: Blob, url?: string}} Upload
 *
 * @typedef {Object} Call
 * @property {"GET" | "POST"} method
 * @property {string} path "embed": relative to the server
 * @property {Record<string, string | number | boolean | Array<string | number>>} [query] a list is the option repeated
 * @property {Array<[string, string | Upload]>} [form] the body as multipart/form-data
 * @property {unknown} [json] the body as JSON; an Upload in it stands for its data: URI
 * @property {Upload} [file] the body as one file
 * @property {string} [accept] media type of the answer
 */

/** An answer that is an error: `detail` is a sentence for people. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {string} detail
   * @param {Record<string, unknown>} [facts] the problem's other members
   */
  constructor(status, detail, facts = {}) {
    super(detail);
    this.name = "Problem";
    this.status = status;
    this.facts = facts;
  }

  /** Whether it may be about the picture: over a limit, no image, a broken one. */
  get isOfPicture() {
    return [413, 415, 422].includes(this.status);
  }
}

/** The server does not answer at all. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
    this.name = "Unreachable";
  }
}

/**
 * Asks the user for an access key; null if there is none. `isWrong`: the server has refused the one before.
 * @typedef {(refusal: string, isWrong: boolean) => Promise<string | null>} AskForKey
 */

/** @type {AskForKey} */
let askForKey = async () => null;

/** @param {AskForKey} ask */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/**
 * @param {Call} call
 * @returns {URL}
 */
export function urlOf(call) {
  const url = new URL(call.path, document.baseURI);
  for (const [name, value] of Object.entries(call.query ?? {})) {
    for (const each of Array.isArray(value) ? value : [value]) url.searchParams.append(name, String(each));
  }
  return url;
}

/**
 * Send a request.
 *
 * @param {Call} call
 * @param {{signal?: AbortSignal}} [options] aborted: rejects with the signal's AbortError
 * @returns {Promise<Response>} of status 2xx; 207 means that some images failed. Throws Problem or Unreachable.
 */
export async function send(call, { signal } = {}) {
  const response = await sendAnyway(call, { signal });
  if (!response.ok) throw await problemOf(response);
  return response;
}

/**
 * Send a request, and give the answer whatever its status is. Throws Unreachable.
 *
 * @param {Call} call
 * @param {{signal?: AbortSignal}} [options]
 */
export async function sendAnyway(call, { signal } = {}) {
  for (;;) {
    /** @type {Record<string, string>} */
    const headers = {};
    if (call.accept) headers["Accept"] = call.accept;
    const sent = accessKey();
    if (sent !== null) headers["Authorization"] = `Bearer ${sent}`;
    const body = await bodyOf(call, headers);
    const response = await whole(() => fetch(urlOf(call), { method: call.method, headers, body, signal }), signal);
    if (response.status !== 401) return response;
    if (accessKey() !== sent) continue; // the user gave another while this was under way
    if (sent !== null) forgetKey();
    const key = await askForKey((await problemOf(response.clone())).message, sent !== null);
    if (key === null) return response;
    keepKey(key);
  }
}

/**
 * An answer with all of its body: a connection that ends within it is no answer either.
 *
 * @param {() => Promise<Response>} ask
 * @param {AbortSignal} [signal]
 */
async function whole(ask, signal) {
  try {
    const response = await ask();
    const { status, statusText, headers } = response;
    const body = await response.arrayBuffer();
    return new Response(body.byteLength > 0 ? body : null, { status, statusText, headers });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable();
  }
}

/**
 * What an answer of JSON says. Throws Problem for what is none, such as a page that a proxy puts in its place.
 *
 * @param {Response} response
 */
export async function jsonOf(response) {
  try {
    return await response.json();
  } catch {
    throw new Problem(response.status, "The answer is not JSON: something between this page and the server wrote it.");
  }
}

/**
 * @param {Call} call
 * @param {Record<string, string>} headers the body's type is added
 * @returns {Promise<BodyInit | undefined>}
 */
async function bodyOf(call, headers) {
  if (call.form) {
    const form = new FormData();
    for (const [name, value] of call.form) {
      if (typeof value === "string") form.append(name, value);
      else form.append(name, value.blob, value.name);
    }
    return form;
  }
  if (call.file) {
    headers["Content-Type"] = call.file.blob.type || "application/octet-stream";
    return call.file.blob;
  }
  if (call.json === undefined) return undefined;
  headers["Content-Type"] = "application/json";
  return toJson(call.json, await Promise.all(uploadsIn(call.json).map(dataUri)));
}

/**
 * @param {unknown} value
 * @returns {value is Upload}
 */
export function isUpload(value) {
  return value instanceof Object && "blob" in value && value.blob instanceof Blob;
}

/**
 * The files in a JSON value, in the order in which they are written.
 *
 * @param {unknown} value
 * @returns {Upload[]}
 */
export function uploadsIn(value) {
  if (isUpload(value)) return [value];
  return value instanceof Object ? Object.values(value).flatMap(uploadsIn) : [];
}

/**
 * A JSON value as text, with these strings in place of its files.
 *
 * @param {unknown} value
 * @param {string[]} uris
 */
export function toJson(value, uris) {
  const rest = uris.values();
  return JSON.stringify(value, (_, each) => (isUpload(each) ? rest.next().value : each));
}

/** @param {Upload} file @returns {Promise<string>} */
function dataUri({ blob }) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/**
 * The sentence of an error's answer, whatever its form.
 *
 * @param {Response} response
 */
export async function problemOf(response) {
  const text = await response.text();
  try {
    const facts = JSON.parse(text);
    const detail = facts.detail ?? facts.title ?? facts.error?.message ?? facts.error ?? facts.message;
    if (typeof detail === "string") return new Problem(response.status, detail, facts);
  } catch {
    // not JSON: a proxy's own page, maybe
  }
  return new Problem(
    response.status,
    `The server answered ${response.status} ${response.statusText}.`.replace(" .", "."),
  );
}
