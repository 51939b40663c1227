/** The user's own pictures, kept in this browser (IndexedDB) so that a reload and a link find them. They go nowhere else. */

const STORE = "pictures";
const MOST = 24;

/** @typedef {{id: string, name: string, blob: Blob, at: number}} Kept at: when it came, in ms */

/** @returns {Promise<IDBDatabase>} rejects where the browser forbids it */
function database() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("visiontower", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} ask
 * @returns {Promise<T | undefined>} undefined where the browser keeps nothing
 */
async function inStore(mode, ask) {
  try {
    const open = await database();
    return await new Promise((resolve, reject) => {
      const request = ask(open.transaction(STORE, mode).objectStore(STORE));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } catch {
    return undefined;
  }
}

/** @param {Omit<Kept, "at">} picture */
export async function keep(picture) {
  await inStore("readwrite", (store) => store.put({ ...picture, at: Date.now() }));
  const all = (await inStore("readonly", (store) => store.getAll())) ?? [];
  const old = all.sort((a, b) => b.at - a.at).slice(MOST);
  for (const { id } of old) await forget(id);
}

/** @param {string} id */
export async function forget(id) {
  await inStore("readwrite", (store) => store.delete(id));
}

/** @param {string} id @returns {Promise<Kept | undefined>} */
export function find(id) {
  return inStore("readonly", (store) => store.get(id));
}
