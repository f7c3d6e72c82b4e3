// Renders conversations by templates as Ollama does: a list of {template, conversations} in JSON
// comes in, for each a list of texts goes out.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

// What Ollama hands a template for a turn, as far as plain chats need it.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type task struct {
	Template      string       `json:"template"`
	Conversations [][]*message `json:"conversations"`
}

func render(parsed *template.Template, messages []*message) string {
	var system []string
	for _, one := range messages {
		if one.Role == "system" {
			system = append(system, one.Content)
		}
	}
	values := map[string]any{
		"System":   strings.Join(system, "\n\n"),
		"Messages": messages,
		"Prompt":   messages[len(messages)-1].Content,
		"Response": "",
	}
	var written strings.Builder
	if err := parsed.Execute(&written, values); err != nil {
		log.Fatal(err)
	}
	return written.String()
}

func main() {
	var tasks []task
	if err := json.NewDecoder(os.Stdin).Decode(&tasks); err != nil {
		log.Fatal(err)
	}
	written := make([][]string, len(tasks))
	for number, one := range tasks {
		parsed, err := template.New("").Option("missingkey=zero").Parse(one.Template)
		if err != nil {
			log.Fatal(err)
		}
		for _, messages := range one.Conversations {
			written[number] = append(written[number], render(parsed, messages))
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(written); err != nil {
		log.Fatal(err)
	}
}
