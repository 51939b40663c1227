/** The files of a drop: of a folder the pictures in it, however deep. */

/** What browsers take for a picture, and what the server reads beyond that. */
export const PICTURES = "image/*,.tif,.tiff,.heic,.heif,.avif,.jxl,.ppm,.dng";

/**
 * @param {DataTransfer} transfer
 * @returns {Promise<File[]>} files that were dropped themselves, of whatever kind, and the pictures of folders by name
 */
export async function filesOf(transfer) {
  const items = Array.from(transfer.items).filter(({ kind }) => kind === "file");
  // All at once: after the event they give nothing any more.
  const dropped = items.map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
  const files = dropped.map(({ entry, file }) => {
    if (entry?.isDirectory) return picturesIn(/** @type {FileSystemDirectoryEntry} */ (entry));
    return file ? [file] : [];
  });
  return (await Promise.all(files)).flat();
}

/** @param {FileSystemDirectoryEntry} folder @returns {Promise<File[]>} */
async function picturesIn(folder) {
  const entries = await entriesOf(folder);
  entries.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  /** @type {File[]} */
  const files = [];
  for (const entry of entries) {
    if (entry.name.startsWith(".")) continue; // what systems put beside the user's own files
    if (entry.isDirectory) {
      files.push(...(await picturesIn(/** @type {FileSystemDirectoryEntry} */ (entry))));
      continue;
    }
    const file = await fileOf(/** @type {FileSystemFileEntry} */ (entry));
    if (isPicture(file)) files.push(file);
  }
  return files;
}

/** @param {FileSystemDirectoryEntry} folder @returns {Promise<FileSystemEntry[]>} */
async function entriesOf(folder) {
  const reader = folder.createReader();
  /** @type {FileSystemEntry[]} */
  const all = [];
  for (;;) {
    // Browsers give some at a time, and none after the last.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return all;
    all.push(...some);
  }
}

/** @param {FileSystemFileEntry} entry @returns {Promise<File>} */
function fileOf(entry) {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}

/** @param {File} file */
function isPicture({ name, type }) {
  const ending = name.slice(name.lastIndexOf(".")).toLowerCase();
  return type.startsWith("image/") || PICTURES.split(",").includes(ending);
}
