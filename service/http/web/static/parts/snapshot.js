/** A picture of what a view shows: its canvases, boxes and words, drawn where they stand. */

/**
 * @param {HTMLElement} element
 * @returns {Promise<Blob | null>} PNG, at twice the page's pixels
 */
export function snapshot(element) {
  const frame = element.getBoundingClientRect();
  const scale = 2;
  const canvas = document.createElement("canvas");
  canvas.width = Math.ceil(frame.width * scale);
  canvas.height = Math.ceil(frame.height * scale);
  const context = canvas.getContext("2d");
  if (context === null) return Promise.resolve(null);
  context.scale(scale, scale);
  context.translate(-frame.left, -frame.top);
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(frame.left, frame.top, frame.width, frame.height);
  draw(context, element);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** @param {CanvasRenderingContext2D} context @param {Element} element */
function draw(context, element) {
  const style = getComputedStyle(element);
  const { left, top, width, height } = element.getBoundingClientRect();
  if (style.display === "none" || style.visibility === "hidden" || width === 0 || height === 0) return;
  if (element.classList.contains("visually-hidden")) return;
  context.save();
  context.globalAlpha *= Number(style.opacity);
  if (style.overflow !== "visible") {
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
  }
  if (element instanceof HTMLInputElement && element.type === "range") {
    context.restore();
    return; // its value is said beside it
  }
  context.fillStyle = style.backgroundColor;
  context.fillRect(left, top, width, height);
  if (element instanceof HTMLCanvasElement || element instanceof HTMLImageElement) {
    context.imageSmoothingEnabled = style.imageRendering !== "pixelated";
    if (element.width > 0 && element.height > 0) context.drawImage(element, left, top, width, height);
  } else if (element instanceof HTMLSelectElement || element instanceof HTMLInputElement) {
    const words = element instanceof HTMLSelectElement ? (element.selectedOptions[0]?.text ?? "") : element.value;
    const isWritten = element instanceof HTMLSelectElement || ["text", "number", "search"].includes(element.type);
    if (isWritten) write(context, style, words, left + 8, top + height / 2);
  } else if (element instanceof HTMLTextAreaElement) {
    const line = parseFloat(style.lineHeight);
    element.value.split("\n").forEach((words, index) => {
      write(context, style, words, left + 8, top + 4 + (index + 0.5) * line - element.scrollTop);
    });
  } else {
    for (const child of element.childNodes) {
      if (child instanceof Element) draw(context, child);
      else if (child instanceof Text) drawText(context, style, child);
    }
  }
  drawBorder(context, style, { left, top, width, height });
  context.restore();
}

/**
 * Word by word, since a text may be wrapped.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {CSSStyleDeclaration} style
 * @param {Text} text
 */
function drawText(context, style, text) {
  const range = document.createRange();
  for (const { 0: word, index } of text.data.matchAll(/\S+/gu)) {
    range.setStart(text, index);
    range.setEnd(text, index + word.length);
    const { left, top, height, width } = range.getBoundingClientRect();
    if (width > 0) write(context, style, word, left, top + height / 2);
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {CSSStyleDeclaration} style
 * @param {string} words
 * @param {number} x
 * @param {number} middle
 */
function write(context, style, words, x, middle) {
  context.font = style.font || `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  context.fillStyle = style.color;
  context.textBaseline = "middle";
  context.fillText(words, x, middle);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {CSSStyleDeclaration} style
 * @param {{left: number, top: number, width: number, height: number}} box
 */
function drawBorder(context, style, { left, top, width, height }) {
  const line = parseFloat(style.borderTopWidth);
  if (!(line > 0) || style.borderTopStyle === "none") return;
  context.strokeStyle = style.borderTopColor;
  context.lineWidth = line;
  context.strokeRect(left + line / 2, top + line / 2, width - line, height - line);
}
