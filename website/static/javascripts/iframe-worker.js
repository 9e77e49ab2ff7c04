// Pages that are opened from disk may start no worker, and the search is one. At a file: address a worker is a hidden
// frame that runs the same script. As between workers, what is sent is copied, and arrives when the sender is done.
if (location.protocol === "file:")
  window.Worker = class {
    constructor(url) {
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.worker = this
      this.frame.srcdoc = `<!doctype html>
        <script>var postMessage = data => frameElement.worker.receive(data)<\/script>
        <script src="${new URL(url, document.baseURI).href}"><\/script>`
      this.frame.onload = () => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach(data => this.postMessage(data))
      }
      document.body.appendChild(this.frame)
    }
    receive(data) {
      const copy = structuredClone(data)
      setTimeout(() => this.onmessage?.(new MessageEvent("message", { data: copy })))
    }
    postMessage(data) {
      if (this.waiting) {
        this.waiting.push(data)
        return
      }
      const inside = this.frame.contentWindow
      const copy = inside.structuredClone(data)
      inside.setTimeout(() => inside.dispatchEvent(new inside.MessageEvent("message", { data: copy })))
    }
    terminate() {
      this.frame.remove()
    }
  }
