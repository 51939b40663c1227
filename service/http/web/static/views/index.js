/** The views, in the order of their tabs. */

import { CostView } from "./cost.js";
import { TokensView } from "./tokens.js";

export const VIEWS = [TokensView, CostView];
