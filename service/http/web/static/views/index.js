/** The views, in the order of their tabs. */

import { CostView } from "./cost.js";
import { LiveView } from "./live.js";
import { SearchView } from "./search.js";
import { TokensView } from "./tokens.js";

export const VIEWS = [TokensView, SearchView, CostView, LiveView];
