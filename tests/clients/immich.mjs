// Immich's two calls as its server makes them (server/src/repositories/machine-learning.repository.ts), with Node's own
// FormData and fetch, so that the bytes are real. Needs Node 18 or later, and nothing else:
//   node tests/clients/immich.mjs http://127.0.0.1:8000 ViT-B-32__openai PHOTO [TEXT]
// Prints a JSON object a call: status and answer.
import { readFile } from 'node:fs/promises';

const [url, modelName, photo, text = 'a red circle'] = process.argv.slice(2);

async function predict(entries, input) {
  const form = new FormData();
  form.append('entries', JSON.stringify(entries));
  for (const [name, value] of Object.entries(input)) form.append(name, value);
  return show(entries, await fetch(new URL('/predict', url), { method: 'POST', body: form }));
}

async function show(asked, response) {
  const type = response.headers.get('content-type') ?? '';
  const answer = type.includes('json') ? await response.json() : await response.text();
  console.log(JSON.stringify({ asked, status: response.status, answer }));
}

const image = new Blob([new Uint8Array(await readFile(photo))]);
await show('ping', await fetch(new URL('/ping', url), { signal: AbortSignal.timeout(2000) }));
await predict({ clip: { visual: { modelName } } }, { image });
await predict({ clip: { textual: { modelName, options: {} } } }, { text });
await predict({ 'facial-recognition': { detection: { modelName: 'buffalo_l', options: { minScore: 0.7 } }, recognition: { modelName: 'buffalo_l' } } }, { image });
