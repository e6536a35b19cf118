// Loaded before the page is drawn, so that a chosen theme never flashes in the other one. Without a choice the system's
// preference holds (see color-scheme in style.css).
const THEME = "example-theme";

function systemTheme() {
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function currentTheme() {
  return document.documentElement.dataset.theme ?? systemTheme();
}

function setTheme(theme) {
  if (theme === systemTheme()) {
    delete document.documentElement.dataset.theme; // follows the system again
    localStorage.removeItem(THEME);
  } else {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem(THEME, theme);
  }
}

const chosenTheme = localStorage.getItem(THEME);
if (chosenTheme) document.documentElement.dataset.theme = chosenTheme;

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme").addEventListener("click", () => {
    setTheme(currentTheme() === "dark" ? "light" : "dark");
  });
});
