/* The search runs in a worker, which pages opened from a disk may not start: there a hidden frame runs its script. */
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "search";
      document.body.append(this.frame);
      const inner = this.frame.contentWindow;
      const load = (src) =>
        new Promise((done, failed) => {
          const script = inner.document.createElement("script");
          script.src = new URL(src, document.baseURI).href;
          script.onload = done;
          script.onerror = () => failed(new Error(`cannot load ${src}`));
          inner.document.body.append(script);
        });
      inner.importScripts = (...sources) => sources.reduce((before, src) => before.then(() => load(src)), Promise.resolve());
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = load(url);
    }

    set onmessage(listener) {
      this.addEventListener("message", listener);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
