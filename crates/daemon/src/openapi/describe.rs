//! Makes the document: from the table of requests, the arguments of the handlers and their results.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::answer::{CURSOR, Created, Executed, Frames, LINES, Lines, Text};
use crate::api::{
    ContainerId, ContainerOptions, CreateRequest, ErrorBody, ErrorKind, ExecOptions, ExecRequest,
    HealthCheck, Message, ProcessId, RestartPolicy, Started,
};
use crate::body::Input;
use crate::error::Failure;
use crate::frame;
use crate::metrics::{OPEN_METRICS, OpenMetrics};
use crate::routes::{Asked, Path};

/// Where the schemas of types are in the document.
const SCHEMAS: &str = "/components/schemas";

/// A document that is being made.
pub(crate) struct Describing {
    /// Schemas of what clients send: a field with a default may be missing.
    requests: SchemaGenerator,
    /// Schemas of what they get: such a field is always there.
    answers: SchemaGenerator,
    paths: Map<String, Value>,
    /// The request that is being described.
    operation: Value,
}

/// An argument or a result of a handler.
pub(crate) trait Describe {
    /// Adds to the request what it says about that.
    fn describe(to: &mut Describing);
}

/// A handler with these arguments.
pub(crate) trait Handler<Arguments> {
    fn describe(&self, to: &mut Describing);
}

macro_rules! handler {
    ($($argument:ident)*) => {
        impl<F, R, $($argument),*> Handler<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> R,
            R: Future<Output: Describe>,
            $($argument: Describe,)*
        {
            fn describe(&self, to: &mut Describing) {
                $($argument::describe(to);)*
                R::Output::describe(to);
            }
        }
    };
}

handler!();
handler!(A);
handler!(A B);
handler!(A B C);
handler!(A B C D);

impl Describing {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = SCHEMAS.into();
                settings.meta_schema = None;
            })
        };
        Self {
            requests: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
            paths: Map::new(),
            operation: Value::Null,
        }
    }

    /// Adds a request. Its id is made from its path: `GET /v1/containers/{id}/runs` is `getContainersRuns`.
    pub(crate) fn request<A>(
        &mut self,
        method: &str,
        path: &str,
        summary: &str,
        handler: impl Handler<A>,
    ) {
        let words = path.split(['/', '-', '.']).filter(|word| *word != "v1");
        let words = words.filter(|word| !word.starts_with('{')).map(capitalized);
        let id: String = std::iter::once(method.to_owned()).chain(words).collect();
        // The one with a container's id is another one than that without.
        let id = if path.ends_with("s/{id}") { id.trim_end_matches('s').to_owned() } else { id };
        self.operation =
            json!({ "operationId": id, "summary": summary, "parameters": [], "responses": {} });
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')) {
            let name = name.trim_end_matches('}');
            let schema = match name {
                "id" => self.requests.subschema_for::<ContainerId>(),
                "process" => self.requests.subschema_for::<ProcessId>(),
                _ => panic!("{path}: which type has {name}?"),
            };
            self.parameter(
                json!({ "name": name, "in": "path", "required": true, "schema": schema }),
            );
            self.error(400, "The id is not one");
            self.error(404, "There is no such container or process");
        }
        handler.describe(self);
        let operation = self.operation.take();
        let operations = self.paths.entry(path).or_insert_with(|| json!({}));
        assert!(operations.get(method).is_none(), "{method} {path} is there twice");
        operations[method] = operation;
    }

    fn parameter(&mut self, parameter: Value) {
        self.operation["parameters"].as_array_mut().expect("an array").push(parameter);
    }

    fn answer(&mut self, status: &str, answer: Value) {
        self.operation["responses"][status] = answer;
    }

    /// Adds an answer that has content of this type.
    fn success(&mut self, status: &str, what: &str, media_type: &str, schema: impl Into<Value>) {
        let content = json!({ media_type: { "schema": schema.into() } });
        self.answer(status, json!({ "description": what, "content": content }));
    }

    fn error(&mut self, status: u16, what: &str) {
        let schema = self.answers.subschema_for::<ErrorBody>();
        self.success(&status.to_string(), what, "application/json", schema);
    }

    fn finish(mut self) -> Value {
        let mut schemas = self.answers.take_definitions(true);
        for (name, schema) in self.requests.take_definitions(true) {
            let known = schemas.entry(&name).or_insert_with(|| schema.clone());
            assert_eq!(*known, schema, "{name} differs between requests and answers");
        }
        let mut document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Holdfast",
                "version": env!("CARGO_PKG_VERSION"),
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
                "description": "The API of the daemon: HTTP/1.1 with JSON, on a Unix socket. \
                    A status of 400 or more comes with an ErrorBody. Unknown fields and query names are errors. \
                    The read-only socket and the web page's port answer GET requests only, and not `attach`: \
                    all else is 403. The port also needs a bearer token (else 401).",
            },
            "paths": self.paths,
            "components": { "schemas": schemas },
        });
        make_plain(&mut document);
        // The order of the keys may depend on a feature of serde_json.
        document.sort_all_objects();
        document
    }
}

fn capitalized(word: &str) -> String {
    let (first, rest) = word.split_at_checked(1).unwrap_or_default();
    first.to_uppercase() + rest
}

/// Turns descriptions, which are comments of Rust code, into plain text: no links, one line for each paragraph.
fn make_plain(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(make_plain),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "description" => *text = plain(text),
                    _ => make_plain(value),
                }
            }
        }
        _ => {}
    }
}

fn plain(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let line = paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let (mut plain, mut rest) = (String::new(), line.as_str());
        while let Some((before, link)) = rest.split_once("[`") {
            let (name, after) = link.split_once("`]").expect("the end of a link");
            let target = after.strip_prefix('(').and_then(|target| target.split_once(')'));
            plain.extend([before, "`", name, "`"]);
            rest = target.map_or(after, |(_, after)| after);
        }
        // A value that is missing in Rust.
        (plain + rest).replace("`None`", "null")
    });
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// What all failures have, with the status of each kind.
impl Describe for Failure {
    fn describe(to: &mut Describing) {
        let schema = to.answers.subschema_for::<ErrorBody>();
        to.answers.subschema_for::<ErrorKind>();
        let kinds = &to.answers.definitions()["ErrorKind"]["oneOf"];
        let kinds = kinds.as_array().expect("kinds").iter().map(|kind| {
            let name = kind["const"].as_str().expect("a name");
            let kind = serde_json::from_value(kind["const"].clone()).expect("a kind");
            let status = Failure::new(kind, "").status();
            format!("`{name}` {}", status.as_u16())
        });
        let kinds: Vec<_> = kinds.collect();
        let what = format!("Failed. The status follows from the kind: {}", kinds.join(", "));
        to.success("default", &what, "application/json", schema);
    }
}

impl<T: Describe> Describe for Result<T, Failure> {
    fn describe(to: &mut Describing) {
        T::describe(to);
        Failure::describe(to);
    }
}

impl<T> Describe for State<T> {
    fn describe(_: &mut Describing) {}
}

/// The path itself says its parameters.
impl<T> Describe for Path<T> {
    fn describe(_: &mut Describing) {}
}

impl<T: JsonSchema> Describe for Asked<T> {
    fn describe(to: &mut Describing) {
        let schema = T::json_schema(&mut to.requests);
        let required = schema.get("required").cloned().unwrap_or_else(|| json!([]));
        let fields = schema.get("properties").and_then(Value::as_object).expect("fields");
        for (name, schema) in fields {
            let required = required.as_array().expect("names").contains(&json!(name));
            let mut schema = schema.clone();
            let fields = schema.as_object_mut().expect("a schema");
            let description = fields.remove("description").expect("a description");
            to.parameter(json!({
                "name": name,
                "in": "query",
                "required": required,
                "description": description,
                "schema": without_null(schema),
            }));
        }
        to.error(400, "The id, the query or the body is invalid");
    }
}

/// A query has no null: what is `None` is missing.
fn without_null(mut schema: Value) -> Value {
    if let Some([one, null]) = schema["anyOf"].as_array().map(Vec::as_slice)
        && null["type"] == "null"
    {
        return one.clone();
    }
    if let Some([one, null]) = schema["type"].as_array().map(Vec::as_slice)
        && null == "null"
    {
        schema["type"] = one.clone();
    }
    // Indexing has made what was not there.
    schema.as_object_mut().expect("a schema").retain(|_, value| !value.is_null());
    schema
}

impl<T: JsonSchema> Describe for Input<T> {
    fn describe(to: &mut Describing) {
        let schema = to.requests.subschema_for::<T>();
        let content = json!({ "application/json": { "schema": schema } });
        to.operation["requestBody"] = json!({ "required": true, "content": content });
        to.error(400, "The id, the query or the body is invalid");
        to.error(408, "The body did not arrive in time");
        to.error(413, "The body is too large");
        to.error(422, "The body is JSON, but not of this type");
    }
}

impl<T: JsonSchema> Describe for Json<T> {
    fn describe(to: &mut Describing) {
        let schema = to.answers.subschema_for::<T>();
        to.success("200", "Succeeded", "application/json", schema);
    }
}

impl<T: JsonSchema> Describe for Text<T> {
    fn describe(to: &mut Describing) {
        Json::<T>::describe(to);
    }
}

impl<T: JsonSchema> Describe for Created<T> {
    fn describe(to: &mut Describing) {
        let schema = to.answers.subschema_for::<T>();
        to.success("201", "Created", "application/json", schema);
    }
}

impl Describe for NoContent {
    fn describe(to: &mut Describing) {
        to.answer("204", json!({ "description": "Succeeded" }));
    }
}

const FRAMES: &str = "A stream of frames: one byte kind, four bytes length (big endian), content. \
    Kind 1 is standard output, 2 standard error, 3 a Message as JSON, 4 a notice of Holdfast, \
    5 a position: text that stands for all output before it";

impl Describe for Frames {
    fn describe(to: &mut Describing) {
        to.answers.subschema_for::<Message>();
        to.success("200", FRAMES, frame::CONTENT_TYPE, json!({}));
    }
}

impl Describe for Executed {
    fn describe(to: &mut Describing) {
        Frames::describe(to);
        let schema = to.answers.subschema_for::<Started>();
        let answer = &mut to.operation["responses"]["200"];
        answer["description"] = format!("If detached, JSON. Else {FRAMES}").into();
        answer["content"]["application/json"] = json!({ "schema": schema });
    }
}

impl<T: JsonSchema> Describe for Lines<T> {
    fn describe(to: &mut Describing) {
        let schema = to.answers.subschema_for::<T>();
        to.success("200", "JSON lines; the schema is that of a line", LINES, schema);
        let schema = to.requests.subschema_for::<crate::api::Cursor>();
        let header = json!({ "description": "The cursor of the beginning", "schema": schema });
        to.operation["responses"]["200"]["headers"] = json!({ CURSOR: header });
    }
}

impl Describe for OpenMetrics {
    fn describe(to: &mut Describing) {
        to.success("200", "Metrics for Prometheus", OPEN_METRICS, json!({ "type": "string" }));
    }
}

/// A container to create.
#[derive(JsonSchema, Serialize)]
#[schemars(deny_unknown_fields)]
struct Create {
    #[schemars(flatten)]
    options: ContainerOptions,
    /// Whether it is started at once. Implied by `POST /v1/run`.
    #[schemars(default)]
    start: bool,
    /// Its restart policy; not together with `remove`.
    restart: Option<RestartPolicy>,
    /// Its health check.
    health: Option<HealthCheck>,
}

impl JsonSchema for CreateRequest {
    fn schema_name() -> Cow<'static, str> {
        "CreateRequest".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Create::json_schema(generator)
    }
}

/// A further process to run in a container.
#[derive(JsonSchema, Serialize)]
#[schemars(deny_unknown_fields)]
struct Exec {
    #[schemars(flatten)]
    options: ExecOptions,
    /// Whether the answer comes with the start, without the output. Such a process keeps its status and
    /// its output until it is deleted.
    #[schemars(default)]
    detach: bool,
}

impl JsonSchema for ExecRequest {
    fn schema_name() -> Cow<'static, str> {
        "ExecRequest".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Exec::json_schema(generator)
    }
}

#[test]
fn the_openapi_document_is_the_one_that_the_code_makes() {
    let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut document = Describing::new();
    crate::routes::describe(&mut document);
    let text = format!("{:#}\n", document.finish());
    let made = workspace.join("target/openapi.json");
    std::fs::create_dir_all(workspace.join("target")).expect("make a directory");
    std::fs::write(&made, &text).expect("write what was made");
    let changes: Vec<String> = super::DOCUMENT
        .lines()
        .zip(text.lines())
        .filter(|(listed, made)| listed != made)
        .map(|(listed, made)| format!("- {listed}\n+ {made}"))
        .take(5)
        .collect();
    assert!(
        text == super::DOCUMENT,
        "the API has changed. If it was meant to: cp target/openapi.json docs/openapi.json\n{}",
        changes.join("\n")
    );
}
