// Search in a worker, which browsers refuse to pages that are opened as files: a hidden frame takes its place there.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.body.appendChild(document.createElement("iframe"))
      frame.hidden = true
      const inner = frame.contentWindow
      inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inner.importScripts = (...urls) => Promise.all(urls.map(one => this.load(inner, one)))
      this.ready = this.load(inner, url).then(() => inner)
    }
    load(inner, url) {
      const script = inner.document.createElement("script")
      script.src = url
      inner.document.body.append(script)
      return new Promise((done, failed) => Object.assign(script, { onload: done, onerror: failed }))
    }
    postMessage(data) {
      this.ready.then(inner => inner.dispatchEvent(new inner.MessageEvent("message", { data })))
    }
  }
