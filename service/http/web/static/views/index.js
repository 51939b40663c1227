/** The views, in the order of their tabs. */

import { TokensView } from "./tokens.js";

export const VIEWS = [TokensView];
