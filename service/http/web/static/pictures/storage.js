/** The user's own pictures, kept in this browser (IndexedDB) so that a reload and a link find them. They go nowhere else. */

const STORE = "pictures";
/** The oldest go when there is more. */
const MOST_BYTES = 512 * 2 ** 20;

/** @typedef {{id: string, name: string, blob: Blob, at: number}} Kept at: when it came, in ms */

/** @type {Promise<IDBDatabase> | null} */
let opened = null;

/** @returns {Promise<IDBDatabase>} rejects where the browser forbids it */
function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("visiontower", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} ask
 * @returns {Promise<T | undefined>} undefined where the browser keeps nothing
 */
async function inStore(mode, ask) {
  try {
    const db = await database();
    return await new Promise((resolve, reject) => {
      const request = ask(db.transaction(STORE, mode).objectStore(STORE));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } catch {
    return undefined;
  }
}

/** @param {Array<Omit<Kept, "at">>} pictures */
export async function keep(pictures) {
  for (const picture of pictures) await inStore("readwrite", (store) => store.put({ ...picture, at: Date.now() }));
  const all = (await inStore("readonly", (store) => store.getAll())) ?? [];
  let bytes = 0;
  for (const { id, blob } of all.sort((a, b) => b.at - a.at)) {
    bytes += blob.size;
    if (bytes > MOST_BYTES) await forget(id);
  }
}

/** @param {string} id */
export async function forget(id) {
  await inStore("readwrite", (store) => store.delete(id));
}

/** @param {string} id @returns {Promise<Kept | undefined>} */
export function find(id) {
  return inStore("readonly", (store) => store.get(id));
}
