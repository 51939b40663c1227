/** The views, in the order of their tabs. */

import { CostView } from "./cost/view.js";
import { LiveView } from "./live/view.js";
import { MatchView } from "./match/view.js";
import { SearchView } from "./search/view.js";
import { TextsView } from "./texts/view.js";
import { TokensView } from "./tokens/view.js";

export const VIEWS = [TokensView, TextsView, MatchView, SearchView, CostView, LiveView];
