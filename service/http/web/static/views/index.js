/** The views, in the order of their tabs. */

import { SearchView } from "./search.js";
import { TokensView } from "./tokens.js";

export const VIEWS = [TokensView, SearchView];
