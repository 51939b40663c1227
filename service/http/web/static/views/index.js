/** The views, in the order of their tabs. */

import { MatchView } from "./match.js";
import { TextsView } from "./texts.js";
import { TokensView } from "./tokens.js";

export const VIEWS = [TokensView, TextsView, MatchView];
