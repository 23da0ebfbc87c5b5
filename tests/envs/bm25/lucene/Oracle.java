// Answers with Lucene itself: java -cp anserini-0.22.1-fatjar.jar:. Oracle INPUT OUTPUT (see make_golden.py).
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.lucene.analysis.Analyzer;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.en.EnglishAnalyzer;
import org.apache.lucene.analysis.tokenattributes.CharTermAttribute;
import org.apache.lucene.document.Document;
import org.apache.lucene.document.Field;
import org.apache.lucene.document.TextField;
import org.apache.lucene.index.DirectoryReader;
import org.apache.lucene.index.IndexWriter;
import org.apache.lucene.index.IndexWriterConfig;
import org.apache.lucene.index.Term;
import org.apache.lucene.search.BooleanClause;
import org.apache.lucene.search.BooleanQuery;
import org.apache.lucene.search.BoostQuery;
import org.apache.lucene.search.IndexSearcher;
import org.apache.lucene.search.ScoreDoc;
import org.apache.lucene.search.TermQuery;
import org.apache.lucene.search.similarities.BM25Similarity;
import org.apache.lucene.store.ByteBuffersDirectory;
import org.apache.lucene.store.Directory;

public class Oracle {
    static final int COUNT = 20;
    static final Analyzer ANALYZER = new EnglishAnalyzer();
    static final BM25Similarity SIMILARITY = new BM25Similarity(0.9f, 0.4f);

    static List<String> tokens(String text) throws IOException {
        List<String> found = new ArrayList<>();
        try (TokenStream stream = ANALYZER.tokenStream("text", text)) {
            CharTermAttribute term = stream.addAttribute(CharTermAttribute.class);
            stream.reset();
            while (stream.incrementToken()) {
                found.add(term.toString());
            }
            stream.end();
        }
        return found;
    }

    static Directory index(JsonNode documents) throws IOException {
        Directory directory = new ByteBuffersDirectory();
        IndexWriterConfig config = new IndexWriterConfig(ANALYZER);
        config.setSimilarity(SIMILARITY);
        try (IndexWriter writer = new IndexWriter(directory, config)) {
            for (JsonNode text : documents) {
                Document document = new Document();
                document.add(new TextField("text", text.asText(), Field.Store.NO));
                writer.addDocument(document);
            }
            writer.forceMerge(1);
        }
        return directory;
    }

    static List<List<Number>> search(IndexSearcher searcher, String query) throws IOException {
        Map<String, Integer> counts = new LinkedHashMap<>();
        for (String term : tokens(query)) {
            counts.merge(term, 1, Integer::sum);
        }
        BooleanQuery.Builder builder = new BooleanQuery.Builder();
        for (Map.Entry<String, Integer> entry : counts.entrySet()) {
            TermQuery term = new TermQuery(new Term("text", entry.getKey()));
            builder.add(new BoostQuery(term, entry.getValue()), BooleanClause.Occur.SHOULD);
        }
        List<List<Number>> hits = new ArrayList<>();
        for (ScoreDoc hit : searcher.search(builder.build(), COUNT).scoreDocs) {
            hits.add(List.of(hit.doc, hit.score));
        }
        return hits;
    }

    public static void main(String[] arguments) throws IOException {
        ObjectMapper json = new ObjectMapper();
        JsonNode input = json.readTree(Path.of(arguments[0]).toFile());
        List<List<String>> analyzed = new ArrayList<>();
        for (JsonNode text : input.get("texts")) {
            analyzed.add(tokens(text.asText()));
        }
        IndexSearcher searcher = new IndexSearcher(DirectoryReader.open(index(input.get("documents"))));
        searcher.setSimilarity(SIMILARITY);
        List<List<List<Number>>> rankings = new ArrayList<>();
        for (JsonNode query : input.get("queries")) {
            rankings.add(search(searcher, query.asText()));
        }
        Files.writeString(Path.of(arguments[1]), json.writeValueAsString(Map.of("tokens", analyzed, "rankings", rankings)));
    }
}
