// Light or dark as the UI around the page is; on its own, as the browser prefers.

export function followTheme() {
  const around = window.parent === window ? null : window.parent.document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => {
    const dark = around?.classList.contains("dark") || (!around?.classList.contains("light") && prefersDark.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  };
  if (around) new MutationObserver(follow).observe(around, { attributeFilter: ["class"] });
  prefersDark.addEventListener("change", follow);
  follow();
}
