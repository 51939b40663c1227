/** The fields for a card and the language model on it. */

import { choice, el, labelled } from "../../parts/dom.js";
import { BILLIONS, BITS, CARDS, MOST_CACHE_GIB } from "./card.js";

/** @import {Card} from "./card.js" */

/** @param {Card} card is changed by its user @param {() => void} onchange */
export function cardFields(card, onchange) {
  const sizes = numberChoice(
    [0, ...CARDS],
    card.gib,
    (gib) => (gib === 0 ? "this server's budget" : `${gib} GiB`),
    (gib) => {
      card.gib = gib;
      onchange();
    },
  );
  const models = numberChoice(
    [0, ...BILLIONS],
    card.billions,
    (billions) => (billions === 0 ? "none" : `${billions} B parameters`),
    (billions) => {
      card.billions = billions;
      enable();
      onchange();
    },
  );
  const bits = numberChoice(
    BITS,
    card.bits,
    (count) => `${count} bits`,
    (count) => {
      card.bits = count;
      onchange();
    },
  );
  const cache = el("input", {
    type: "number",
    min: 0,
    max: MOST_CACHE_GIB,
    step: "any",
    value: card.cacheGiB,
    onchange: () => {
      if (!cache.checkValidity() || cache.value === "") cache.value = "0";
      card.cacheGiB = Number(cache.value);
      onchange();
    },
  });
  const enable = () => {
    for (const field of [bits, cache]) field.disabled = card.billions === 0;
  };
  enable();
  return [
    labelled("Graphics card", sizes),
    labelled("Language model beside it", models),
    labelled("Its weights in", bits),
    labelled("Its KV cache, GiB", cache),
  ];
}

/** @param {number[]} options @param {number} chosen @param {(value: number) => string} name @param {(value: number) => void} onchange */
function numberChoice(options, chosen, name, onchange) {
  const texts = options.map((value) => ({ value: String(value), text: name(value) }));
  return choice(texts, String(chosen), (value) => onchange(Number(value)));
}
