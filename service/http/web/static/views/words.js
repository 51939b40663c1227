/** The terms of the views, each in a sentence or two for people who do not know them. */

import { el } from "../parts/dom.js";

const WORDS = /** @type {const} */ ({
  encoder: "A network that turns a picture into numbers, such as CLIP or DINO. Some turn texts into such numbers too.",
  token:
    "What an encoder says of one patch of the picture: a list of numbers. Similar patches have similar tokens. A ViT cuts " +
    "the picture into patches; of a CNN it is a cell of a feature map.",
  "prefix token":
    "A token that belongs to no patch: the class token stands for the whole picture, registers hold what the encoder " +
    "notes for itself.",
  vector: "The encoder's numbers for a whole picture, or for a text.",
  layer: "Encoders work step by step. Early layers tell edges and colours apart, late ones objects.",
  resolution:
    "The pixels that the encoder is given. More pixels are more patches: finer tokens, more compute, more memory. Native " +
    "is what it was trained with.",
  "principal components":
    "The directions in which the tokens differ most. The first three are drawn as red, green and blue; which of them is " +
    "which colour is chance.",
  cosine: "How alike two lists of numbers are: 1 is the same direction, 0 unrelated, −1 opposite.",
  "heat map": "The cosine of each patch with a text, as a colour.",
  logit: "A score before it is a probability: the cosine times a number that the encoder learned.",
  template:
    "A sentence that the text is put into, such as “a photo of a cat”. Many encoders were trained on sentences.",
  FLOPs: "Additions and multiplications that one picture takes.",
  forward: "One run of the encoder, on one picture or on a batch.",
  batch: "Pictures that go through the encoder together.",
  activations: "What the encoder keeps in memory while it runs. They grow with the batch and the resolution.",
  "KV cache": "The memory in which a language model keeps what it has read.",
  queue: "Pictures that wait for their forward.",
});

/** @typedef {keyof typeof WORDS} Word */

/** A list that opens. @param {readonly Word[]} words */
export function meanings(words) {
  const entries = words.flatMap((word) => [el("dt", {}, word), el("dd", {}, WORDS[word])]);
  return el("details", { class: "words" }, el("summary", {}, "What the words mean"), el("dl", {}, ...entries));
}
