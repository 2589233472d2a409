//! `--format`: JSON, or a text with fields in it, as docker has them. Only plain fields: no functions, no
//! conditions.

use std::fmt::Write;
use std::str::FromStr;

use anyhow::{anyhow, bail};
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::streams::{harmless, print};

/// How each of several things is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// A line of JSON for each.
    Json,
    /// A line for each, by a template.
    Lines(Template),
    /// A table whose columns are separated by tabs in the template.
    Table(Template),
}

/// A text with fields in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The value at this path, as text.
    Field(Vec<String>),
    /// The value at this path, as JSON. An empty path is all of it.
    Json(Vec<String>),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "" | "table" => Err("give json, or a template as in '{{.ID}} {{.Status}}'".to_owned()),
            _ => match text.strip_prefix("table ") {
                Some(columns) => columns.parse().map(Self::Table),
                None => text.parse().map(Self::Lines),
            },
        }
    }
}

impl Format {
    /// Prints what was collected.
    pub(crate) fn print_all(&self, values: &[Value]) -> anyhow::Result<()> {
        if let Self::Table(template) = self {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING).set_header(template.header().split('\t'));
            for value in values {
                table.add_row(template.render(value)?.split('\t'));
            }
            return Ok(print(table.trim_fmt())?);
        }
        values.iter().try_for_each(|value| self.print(value))
    }

    /// Prints one thing, as it comes.
    pub(crate) fn print(&self, value: &Value) -> anyhow::Result<()> {
        Ok(match self {
            Self::Json => print(value),
            Self::Lines(template) | Self::Table(template) => print(template.render(value)?),
        }?)
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let (mut parts, mut rest) = (Vec::new(), text.as_str());
        while let Some((before, after)) = rest.split_once("{{") {
            let (field, after) =
                after.split_once("}}").ok_or_else(|| format!("{{{{{after:?} has no end }}}}"))?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::parse(field.trim())?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}

impl Part {
    fn parse(text: &str) -> Result<Self, String> {
        let path = |text: &str| -> Option<Vec<String>> {
            let path = text.trim().strip_prefix('.')?;
            if path.is_empty() {
                return Some(Vec::new());
            }
            let is_name = |name: &&str| {
                !name.is_empty()
                    && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
            };
            let names: Vec<_> = path.split('.').collect();
            names.iter().all(is_name).then(|| names.into_iter().map(str::to_owned).collect())
        };
        let part = match text.strip_prefix("json ") {
            Some(field) => path(field).map(Self::Json),
            None => path(text).filter(|path| !path.is_empty()).map(Self::Field),
        };
        part.ok_or_else(|| {
            format!("{{{{{text}}}}}: a template knows {{{{.Field}}}} and {{{{json .Field}}}} only")
        })
    }
}

impl Template {
    fn header(&self) -> String {
        let names = self.0.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(path) | Part::Json(path) => {
                path.last().map_or_else(String::new, |name| name.to_uppercase())
            }
        });
        names.collect()
    }

    /// Puts the values in. Text that a terminal would act on is escaped, as a container may have chosen it.
    pub(crate) fn render(&self, value: &Value) -> anyhow::Result<String> {
        let mut line = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Json(path) => write!(line, "{}", find(value, path)?)?,
                Part::Field(path) => match find(value, path)? {
                    Value::Null => {}
                    Value::String(text) => line.push_str(&harmless(text)),
                    other => write!(line, "{other}")?,
                },
            }
        }
        Ok(line)
    }
}

/// The value at a path. What is null has no fields, and is null there too.
fn find<'a>(value: &'a Value, path: &[String]) -> anyhow::Result<&'a Value> {
    let mut at = value;
    for name in path {
        at = match at {
            Value::Null => at,
            Value::Object(fields) => {
                let alike = || fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                let found = fields.get(name).or_else(|| alike().map(|(_, value)| value));
                found.ok_or_else(|| {
                    let names: Vec<_> = fields.keys().map(String::as_str).collect();
                    anyhow!("--format: there is no field {name}; there are {}", names.join(", "))
                })?
            }
            _ => bail!("--format: there are no fields in what {name} is looked for in"),
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_found_by_their_names_and_the_rest_stays() {
        let value = json!({
            "id": "a", "ID": "b", "exit": { "status": { "code": 4 } }, "pid": null, "args": ["x\u{1b}"],
            "text": "x\u{1b}\n",
        });
        for (template, line) in [
            ("{{.ID}}", "b"),
            ("{{ .id }}:{{.Pid}}", "a:"),
            ("{{.Exit.Status.Code}}\\t!", "4\t!"),
            ("{{json .exit}}", r#"{"status":{"code":4}}"#),
            ("{{.Args}}", r#"["x\u001b"]"#),
            ("{{.Text}}", "x\\u{1b}\\n"),
            ("{{.Pid.Deeper}}|", "|"),
            ("plain", "plain"),
        ] {
            let template: Template = template.parse().unwrap();
            assert_eq!(template.render(&value).unwrap(), line, "{template:?}");
        }
        let unknown: Template = "{{.Image}}".parse().unwrap();
        let error = unknown.render(&value).unwrap_err().to_string();
        assert!(error.contains("Image") && error.contains("exit"), "{error}");
    }

    #[test]
    fn what_is_no_plain_field_is_refused() {
        for text in
            ["{{.ID", "{{}}", "{{.}}", "{{range .X}}", "{{.a b}}", "{{ID}}", "{{..a}}", "", "table"]
        {
            assert!(text.parse::<Format>().is_err(), "{text}");
        }
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!(matches!("table {{.ID}}\\t{{.Pid}}".parse(), Ok(Format::Table(_))));
    }
}
