/** The views, in the order of their tabs. */

import { CostView } from "./cost.js";
import { LiveView } from "./live.js";
import { MatchView } from "./match.js";
import { SearchView } from "./search.js";
import { TextsView } from "./texts.js";
import { TokensView } from "./tokens.js";

export const VIEWS = [TokensView, TextsView, MatchView, SearchView, CostView, LiveView];
