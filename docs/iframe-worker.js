/* Browsers refuse a worker of a page that is read from disk. This one runs the worker's script in a hidden frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const inner = (this.inner = frame.contentWindow);
      inner.importScripts = (...urls) =>
        urls.reduce(
          (before, source) =>
            before.then(
              () =>
                new Promise((resolve) => {
                  const script = inner.document.createElement("script");
                  script.src = source;
                  script.onload = resolve;
                  inner.document.body.appendChild(script);
                })
            ),
          Promise.resolve()
        );
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = inner.importScripts(url);
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {}
  };
}
