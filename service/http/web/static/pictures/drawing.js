/**
 * Pictures drawn: whole where a view shows them, small in lists of hundreds. A picture of 12 megapixels takes 48 MB
 * while it is decoded, so few are kept whole, and small copies are made one at a time, of what is in view.
 */

import { el } from "../parts/dom.js";

/** @import {Picture} from "./picture.js" */

/** The longest sides of what is drawn. */
const WHOLE_SIDE = 1600;
const SMALL_SIDE = 240;
/** Pictures kept whole: the last ones that were asked for. */
export const MOST_WHOLE = 12;

/** The longest kept is first. @type {Picture[]} */
const whole = [];

/**
 * Set the pictures' `image`, and so their size. Those that the browser cannot draw keep none.
 *
 * @param {Picture[]} pictures at most MOST_WHOLE
 */
export async function drawWhole(pictures) {
  for (const picture of pictures) if (picture.image === null) await draw(picture, WHOLE_SIDE);
  const others = whole.filter((each) => !pictures.includes(each));
  whole.splice(0, whole.length, ...others, ...pictures);
  for (const picture of whole.splice(0, whole.length - MOST_WHOLE)) picture.image = null;
}

/** @param {Picture} picture @param {number} side the longest that is needed */
async function draw(picture, side) {
  const bitmap = await createImageBitmap(picture.upload.blob).catch(() => null); // upright: EXIF's orientation is applied
  if (bitmap === null) {
    picture.small = null;
    return;
  }
  picture.width = bitmap.width;
  picture.height = bitmap.height;
  const canvas = scaled(bitmap, side);
  bitmap.close();
  if (side === WHOLE_SIDE) picture.image = canvas;
  picture.small ??= scaled(canvas, SMALL_SIDE);
}

/**
 * A copy with at most this longest side.
 *
 * @param {ImageBitmap | HTMLCanvasElement} image
 * @param {number} side
 */
function scaled(image, side) {
  const scale = Math.min(1, side / Math.max(image.width, image.height));
  return resized(image, image.width * scale, image.height * scale);
}

/**
 * A copy of this size, rounded to whole pixels.
 *
 * @param {ImageBitmap | HTMLCanvasElement} image
 * @param {number} width
 * @param {number} height
 */
export function resized(image, width, height) {
  const canvas = el("canvas", { width: Math.max(1, Math.round(width)), height: Math.max(1, Math.round(height)) });
  const context = canvas.getContext("2d");
  if (context) {
    context.fillStyle = "white"; // as the server fills what is transparent
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
  }
  return canvas;
}

/** Places of thumbnails that are not filled, and how to. @type {WeakMap<Element, () => Promise<void>>} */
const empty = new WeakMap();
/** Those of them in view, in the order in which they came. @type {Set<Element>} */
const inView = new Set();
let isFilling = false;

const watch = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) inView.add(target);
      else inView.delete(target);
    }
    fillThoseInView();
  },
  { rootMargin: "200px" },
);

async function fillThoseInView() {
  if (isFilling) return;
  isFilling = true;
  for (const place of inView) {
    inView.delete(place);
    watch.unobserve(place);
    await empty.get(place)?.();
  }
  isFilling = false;
}

/**
 * A small copy of the picture, or its name where the browser cannot draw it. It is drawn when it comes into view.
 *
 * @param {Picture} picture
 * @param {() => void} [ondrawn] the picture's size is known now
 */
export function thumbnail(picture, ondrawn = () => {}) {
  const place = el("span", { class: "thumbnail" });
  const fill = () => {
    place.replaceChildren(
      picture.small ? copyOf(picture.small, picture.name) : el("span", { class: "blank" }, picture.name),
    );
    ondrawn();
  };
  if (picture.small !== undefined) {
    fill();
    return place;
  }
  empty.set(place, async () => {
    if (picture.small === undefined) await draw(picture, SMALL_SIDE);
    fill();
  });
  watch.observe(place);
  return place;
}

/** @param {HTMLCanvasElement} small @param {string} name */
function copyOf(small, name) {
  const canvas = scaled(small, SMALL_SIDE);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  return canvas;
}
