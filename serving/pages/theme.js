// Sets the chosen theme before anything is painted. A classic script on purpose: modules wait.
(() => {
  try {
    const chosen = localStorage.getItem("il-theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  } catch { /* without storage the system's theme stays */ }
})();
