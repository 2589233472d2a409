//! A headless Chromium, driven by its chromedriver: WebDriver is HTTP with JSON.

use std::process::Stdio;
use std::time::{Duration, Instant};

use ::http::Request;
use bytes::Bytes;
use holdfast_sys::PidFd;
use http_body_util::Full;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::http::ask;
use crate::{processes, soon};

/// A browser with one page. Dropped, it ends.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    /// Where both keep their files.
    directory: TempDir,
}

impl Browser {
    /// Starts a browser, if one is installed.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start.
    pub async fn start() -> Option<Self> {
        let driver = crate::in_path("chromedriver")?;
        let directory = tempfile::Builder::new().prefix("holdfast-test-").tempdir_in("/tmp");
        let directory = directory.expect("make a directory");
        let mut command = Command::new(driver);
        command.arg("--port=0").env("TMPDIR", directory.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().expect("start chromedriver");
        let mut lines = BufReader::new(driver.stdout.take().expect("its output")).lines();
        let port = loop {
            let line = soon("chromedriver to listen", lines.next_line()).await.expect("a line");
            let line = line.expect("chromedriver says its port");
            if let Some((_, port)) = line.split_once("successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        // What it says later must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let address = format!("127.0.0.1:{port}");
        let mut browser = Self { driver, address, session: String::new(), directory };
        let profile = format!("--user-data-dir={}", browser.directory.path().join("p").display());
        // Root's browser starts only without its sandbox. It visits the page of this test and nothing else.
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            &profile,
        ];
        let logs = json!({ "browser": "ALL" });
        let wanted = json!({ "goog:chromeOptions": { "args": args }, "goog:loggingPrefs": logs });
        let wanted = json!({ "capabilities": { "alwaysMatch": wanted } });
        let made = browser.ask("POST", "/session", &wanted).await;
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        Some(browser)
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let stream = TcpStream::connect(&self.address).await.expect("connect to chromedriver");
        let body = if method == "POST" { Bytes::from(body.to_string()) } else { Bytes::new() };
        let request = Request::builder().method(method).uri(path).header("host", &self.address);
        let request = request.header("content-length", body.len()).body(Full::from(body));
        let answer = ask(stream, request.expect("a request")).await;
        let value = answer.json()["value"].take();
        assert!(answer.status.is_success(), "{method} {path}: {value:#}");
        value
    }

    async fn post(&self, command: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{command}", self.session), body).await
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.post("url", &json!({ "url": url })).await;
    }

    /// Runs a script in the page, and returns its result.
    pub async fn run(&self, script: &str) -> Value {
        self.post("execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// Waits until an expression in the page is true, and shows another one if it does not become so.
    ///
    /// # Panics
    ///
    /// If it does not become so.
    pub async fn until(&self, expression: &str) {
        let holds = async {
            while self.run(&format!("return Boolean({expression})")).await != true {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let limit = Duration::from_secs(30);
        if tokio::time::timeout(limit, holds).await.is_err() {
            let page = self.run("return document.body.innerText").await;
            panic!("{expression}\nis not so in\n{}", page.as_str().unwrap_or_default());
        }
    }

    /// Returns the text of the elements that a selector finds, one per line.
    pub async fn text(&self, selector: &str) -> String {
        let selector = json!(selector);
        let script = format!(
            "return [...document.querySelectorAll({selector})].map(it => it.innerText).join('\\n')"
        );
        self.run(&script).await.as_str().expect("text").to_owned()
    }

    async fn find(&self, selector: &str) -> String {
        let found =
            self.post("element", &json!({ "using": "css selector", "value": selector })).await;
        let id = found.as_object().and_then(|ids| ids.values().next()).and_then(Value::as_str);
        id.expect("an element").to_owned()
    }

    /// Clicks an element, as a person does: it must be visible.
    pub async fn click(&self, selector: &str) {
        let element = self.find(selector).await;
        self.post(&format!("element/{element}/click"), &json!({})).await;
    }

    /// Types into an element.
    pub async fn write(&self, selector: &str, text: &str) {
        let element = self.find(selector).await;
        self.post(&format!("element/{element}/value"), &json!({ "text": text })).await;
    }

    /// Presses a key, wherever the focus is.
    pub async fn press(&self, key: &str) {
        let strokes =
            json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        let keys = json!({ "type": "key", "id": "keys", "actions": strokes });
        self.post("actions", &json!({ "actions": [keys] })).await;
    }

    /// Sends a command of Chromium's own protocol.
    pub async fn control(&self, command: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await
    }

    /// Sets the size of the page.
    pub async fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.control("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Sets whether dark pages are preferred.
    pub async fn scheme(&self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.control("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
    }

    /// Returns a picture of the page, a PNG in base64.
    pub async fn picture(&self) -> String {
        let path = format!("/session/{}/screenshot", self.session);
        self.ask("GET", &path, &Value::Null).await.as_str().expect("a picture").to_owned()
    }

    /// Returns what the browser has complained of since this was asked last.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.post("se/log", &json!({ "type": "browser" })).await;
        let entries = entries.as_array().expect("entries").iter();
        entries.map(|entry| entry["message"].as_str().expect("a message").to_owned()).collect()
    }

    /// Ends the browser.
    pub async fn close(mut self) {
        self.ask("DELETE", &format!("/session/{}", self.session), &Value::Null).await;
        soon("the end of chromedriver", self.driver.kill()).await.expect("end chromedriver");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Whoever still works in the directory, as all do after a failure, would write while it is removed.
        for process in processes::mentioning(self.directory.path()) {
            if let Ok(process) = PidFd::open(process.pid) {
                let _ = process.send_signal(Signal::SIGKILL as i32);
                let _ = process.ends_by(Instant::now() + Duration::from_secs(5));
            }
        }
    }
}
