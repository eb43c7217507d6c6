// On the API's /docs: keeps the token that "Authorize" was given until the tab is closed.
"use strict";
(() => {
  const KEY = "mloc-docs-token";
  const SCHEME = { type: "http", scheme: "bearer" };
  const kept = sessionStorage.getItem(KEY);
  let known = false;
  ui.getStore().subscribe(() => {
    const scheme = ui.specSelectors.securityDefinitions()?.get("token");
    if (!scheme) return; // the document is on its way, or no token is needed
    if (!known) {
      known = true;
      if (kept) ui.authActions.authorize({ token: { name: "token", schema: SCHEME, value: kept } });
      return;
    }
    const value = ui.authSelectors.authorized().getIn(["token", "value"]);
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  });
})();
