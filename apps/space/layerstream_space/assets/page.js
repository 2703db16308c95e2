() => {
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
}
