// The search runs in a worker, and browsers start no worker for a page that was opened as a file. There, a hidden
// frame takes the worker's place: it has the worker's functions, and passes messages both ways.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow;
      window.addEventListener("message", event => {
        if (event.source !== inside) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        if (this.onmessage) this.onmessage(event);
      });
      const page = inside.document;
      const base = new URL(url, location.href).href;
      page.open();
      page.write("<!doctype html><body></body>");
      page.close();
      const load = address => new Promise((done, failed) => {
        const script = page.createElement("script");
        script.src = new URL(address, base).href;
        script.onload = done;
        script.onerror = failed;
        page.body.appendChild(script);
      });
      inside.postMessage = data => window.dispatchEvent(new MessageEvent("message", { data, source: inside }));
      inside.importScripts = (...addresses) =>
        addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve());
      this.ready = load(base);
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() { this.frame.remove(); }
  };
}
