() => {
  window.layerstream = {
    // writes an address with this query into the bar and the clipboard, and says so on the button
    copyLink(query, button, done) {
      const link = new URL(window.location.href.split(/[?#]/)[0]);
      link.search = new URLSearchParams(query).toString();
      window.history.replaceState(null, "", link);
      if (navigator.clipboard) navigator.clipboard.writeText(link.toString()).catch(() => {});
      const pressed = document.querySelector(button);
      if (!pressed) return;
      const label = pressed.dataset.label || pressed.textContent;
      pressed.dataset.label = label;
      pressed.textContent = done;
      setTimeout(() => { pressed.textContent = label; }, 1800);
    },
  };
  // every tab has its own address
  document.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"][data-tab-id]');
    if (!tab || new URLSearchParams(window.location.search).get("tab") === tab.dataset.tabId) return;
    window.history.replaceState(null, "", `${window.location.pathname}?tab=${tab.dataset.tabId}`);
  });
  // gradio's page has a base address, so a plain "#" link would leave the tab
  document.addEventListener("click", (event) => {
    const link = event.target.closest('.ls-block a[href^="#"]');
    const place = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!place) return;
    event.preventDefault();
    for (let around = place.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
    place.tabIndex = -1;
    place.focus({preventScroll: true});
    place.scrollIntoView({block: "start"});
  });

  // a run that begins is brought into view, once; a visitor who scrolls away meanwhile stays there
  const isLive = {};
  const bringIntoView = (block) => {
    const top = block.getBoundingClientRect().top;
    if (top >= 0 && top < window.innerHeight / 2) return;
    const isCalm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    block.scrollIntoView({block: "start", behavior: isCalm ? "auto" : "smooth"});
  };
  new MutationObserver(() => {
    for (const id of ["answers", "watch", "context"]) {
      const live = document.querySelector(`#${id} .live`) !== null;
      if (live && !isLive[id]) requestAnimationFrame(() => bringIntoView(document.getElementById(id)));
      isLive[id] = live;
    }
  }).observe(document.body, {subtree: true, childList: true});
}
